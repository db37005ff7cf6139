"""How host tensors are cut over a mesh, and how chips' parts are put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backends.emulator.chip.device import MeshDevice
from backends.emulator.launch import op, require


@dataclass(frozen=True)
class MeshMapper:
    """Which tensor dim each mesh axis cuts; None repeats the tensor along the axis."""

    dims: tuple[int | None, int | None]
    mesh_shape: tuple[int, int]


@op("ReplicateTensorToMesh")
def ReplicateTensorToMesh(mesh_device: MeshDevice) -> MeshMapper:
    """Every chip gets the whole tensor."""
    rows, cols = mesh_device.shape
    return MeshMapper((None, None), (rows, cols))


@op("ShardTensorToMesh")
def ShardTensorToMesh(mesh_device: MeshDevice, dim: int) -> MeshMapper:
    """One slice per chip of a 1D mesh."""
    rows, cols = mesh_device.shape
    require(1 in (rows, cols), f"ShardTensorToMesh needs a 1D mesh, got {rows}x{cols}")
    return MeshMapper((dim, None) if rows > 1 else (None, dim), (rows, cols))


@op("ShardTensor2dMesh")
def ShardTensor2dMesh(
    mesh_device: MeshDevice, mesh_shape: Sequence[int], dims: Sequence[int | None]
) -> MeshMapper:
    """Rows of the mesh cut dims[0], columns cut dims[1]."""
    rows, cols = mesh_shape
    return MeshMapper((dims[0], dims[1]), (rows, cols))


@dataclass(frozen=True)
class MeshComposer:
    """The tensor dims along which chips' parts are put together, and the mesh they come from."""

    dims: tuple[int, int]
    mesh_shape: tuple[int, int]


@op("ConcatMesh2dToTensor")
def ConcatMesh2dToTensor(
    mesh_device: MeshDevice, mesh_shape: Sequence[int], dims: Sequence[int]
) -> MeshComposer:
    """Rows of the mesh along dims[0], columns along dims[1]."""
    rows, cols = mesh_shape
    return MeshComposer((dims[0], dims[1]), (rows, cols))


def spread(x: torch.Tensor, mapper: MeshMapper | None) -> torch.Tensor:
    """[rows, cols, ...] of a whole tensor; a mesh dim is 1 where nothing is cut."""
    parts = x[None, None]
    if mapper is None:
        return parts
    for axis in (0, 1):
        dim, count = mapper.dims[axis], mapper.mesh_shape[axis]
        if dim is None or count == 1:
            continue
        dim = dim % x.dim() + 2
        size = parts.shape[dim]
        require(size % count == 0, f"dim of {size} does not divide over {count} chips")
        # the mesh axis comes out of the cut dim: a view wherever strides allow
        parts = parts.unflatten(dim, (count, size // count)).movedim(dim, axis).squeeze(axis + 1)
    return parts


def gather(data: torch.Tensor, composer: MeshComposer | None) -> torch.Tensor:
    """A whole tensor of [rows, cols, ...]."""
    if composer is None:
        require(
            data.shape[0] * data.shape[1] == 1,
            "to_torch of a tensor spread over a mesh needs a mesh_composer",
        )
        return data[0, 0].clone()
    data = data.expand(*composer.mesh_shape, *data.shape[2:])
    row_dim, col_dim = composer.dims
    return torch.cat([torch.cat(list(row), dim=col_dim) for row in data], dim=row_dim)
