"""Between host and device: from_torch, to_torch, mesh mappers and composers, files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from backends.emulator.device import MeshDevice
from backends.emulator.formats import to_format
from backends.emulator.launch import fatal, op, require
from backends.emulator.tensor import Tensor
from backends.emulator.trace import refuse_during_capture
from backends.emulator.types import DRAM_MEMORY_CONFIG, DataType, Layout, MemoryConfig

_DEFAULT_TYPES = {
    torch.float32: DataType.FLOAT32,
    torch.bfloat16: DataType.BFLOAT16,
    torch.float16: DataType.BFLOAT16,
    torch.int32: DataType.INT32,
    torch.int64: DataType.UINT32,
    torch.uint8: DataType.UINT8,
}


@dataclass(frozen=True)
class MeshMapper:
    """Which tensor dim each mesh axis cuts; None repeats the tensor along the axis."""

    dims: tuple[int | None, int | None]
    mesh_shape: tuple[int, int]


def ReplicateTensorToMesh(mesh_device: MeshDevice) -> MeshMapper:
    """Every chip gets the whole tensor."""
    return MeshMapper((None, None), tuple(mesh_device.shape))


def ShardTensorToMesh(mesh_device: MeshDevice, dim: int) -> MeshMapper:
    """One slice per chip of a 1D mesh."""
    rows, cols = tuple(mesh_device.shape)
    require(1 in (rows, cols), f"ShardTensorToMesh needs a 1D mesh, got {rows}x{cols}")
    return MeshMapper((dim, None) if rows > 1 else (None, dim), (rows, cols))


def ShardTensor2dMesh(
    mesh_device: MeshDevice, mesh_shape: Sequence[int], dims: Sequence[int | None]
) -> MeshMapper:
    """Rows of the mesh cut dims[0], columns cut dims[1]."""
    return MeshMapper((dims[0], dims[1]), (mesh_shape[0], mesh_shape[1]))


@dataclass(frozen=True)
class MeshComposer:
    """The tensor dims along which chips' parts are put together."""

    dims: tuple[int, int]


def ConcatMeshToTensor(mesh_device: MeshDevice, dim: int) -> MeshComposer:
    """Parts of a 1D mesh side by side."""
    return MeshComposer((dim, dim))


def ConcatMesh2dToTensor(
    mesh_device: MeshDevice, mesh_shape: Sequence[int], dims: Sequence[int]
) -> MeshComposer:
    """Rows of the mesh along dims[0], columns along dims[1]."""
    return MeshComposer((dims[0], dims[1]))


def spread(x: torch.Tensor, mapper: MeshMapper | None) -> torch.Tensor:
    """[rows, cols, ...] of a whole tensor; a mesh dim is 1 where nothing is cut."""
    if mapper is None:
        return x[None, None]
    parts = x[None, None]
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


def from_torch(
    tensor: torch.Tensor,
    dtype: DataType | None = None,
    *,
    layout: Layout | None = Layout.ROW_MAJOR,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
    mesh_mapper: MeshMapper | None = None,
) -> Tensor:
    """Host tensor rounded to `dtype`; with `device`, on the device."""
    dtype = dtype or _DEFAULT_TYPES.get(tensor.dtype)
    if dtype is None:
        fatal(f"cannot convert torch type {tensor.dtype}: give a dtype")
    require(
        not dtype.is_block or layout is Layout.TILE,
        f"Only TILE layout is supported for {dtype.name} dtype!",
    )
    meta = tensor.is_meta or (device is not None and device.is_meta)
    parts = spread(tensor.to("meta") if meta else tensor, mesh_mapper)
    data = None if meta else to_format(parts, dtype)
    if data is not None and data.data_ptr() == tensor.data_ptr():
        data = data.clone()  # the caller may change its tensor
    host = Tensor(data, tuple(parts.shape[2:]), dtype, layout or Layout.ROW_MAJOR)
    return host if device is None else to_device(host, device, memory_config)


@op("to_device")
def to_device(
    tensor: Tensor, device: MeshDevice | None = None, memory_config: MemoryConfig | None = None
) -> Tensor:
    require(device is not None, "to_device needs a device")
    refuse_during_capture(device, "Writes")
    memory = memory_config or DRAM_MEMORY_CONFIG
    data = tensor.data
    if data is not None and device.torch_device == "cuda":
        data = data.to("cuda")
    if device.is_meta:
        data = None
    out = Tensor(data, tensor.shape, tensor.dtype, tensor.layout, memory, device)
    device.allocate(out)
    return out


@op("from_device")
def from_device(tensor: Tensor, blocking: bool = True) -> Tensor:
    refuse_during_capture(tensor.device(), "Reads")
    data = tensor.data.cpu() if tensor.data is not None else None
    return Tensor(data, tensor.shape, tensor.dtype, tensor.layout)


def to_torch(tensor: Tensor, *, mesh_composer: MeshComposer | None = None) -> torch.Tensor:
    """Values in torch's own type; a mesh tensor needs a composer."""
    refuse_during_capture(tensor.device(), "Reads")
    require(tensor.is_allocated(), "Tensor is not allocated")
    if tensor.data is None:
        device = tensor.device()
        require(device is not None and device.is_meta, "the tensor has no values yet")
        return torch.zeros(tuple(tensor.shape), dtype=tensor.dtype.carrier)
    data = tensor.data.cpu()
    rows, cols = data.shape[:2]
    if mesh_composer is None:
        require(rows * cols == 1, "to_torch of a tensor spread over a mesh needs a mesh_composer")
        return data[0, 0].clone()
    device = tensor.device()
    if device is not None:
        data = data.expand(*tuple(device.shape), *data.shape[2:])
    row_dim, col_dim = mesh_composer.dims
    lines = [torch.cat(list(row), dim=col_dim) for row in data]
    return torch.cat(lines, dim=row_dim)


def get_device_tensors(tensor: Tensor) -> list[Tensor]:
    """One tensor per chip, row by row; they share the mesh tensor's values."""
    device = tensor.device()
    rows, cols = tuple(device.shape) if device is not None else tensor.data.shape[:2]

    def part(r: int, c: int) -> Tensor:
        data = tensor.data
        if data is not None:
            r, c = min(r, data.shape[0] - 1), min(c, data.shape[1] - 1)
            data = data[r : r + 1, c : c + 1]
        return Tensor(
            data, tensor.shape, tensor.dtype, tensor.layout, tensor.memory_config(), device
        )

    return [part(r, c) for r in range(rows) for c in range(cols)]


@op("copy_host_to_device_tensor")
def copy_host_to_device_tensor(
    host_tensor: Tensor, device_tensor: Tensor, cq_id: int | None = None
) -> None:
    refuse_during_capture(device_tensor.device(), "Writes")
    same = (host_tensor.shape, host_tensor.dtype) == (device_tensor.shape, device_tensor.dtype)
    require(same, "Host tensor has a different shape or dtype than the device tensor")
    if device_tensor.data is not None:
        device_tensor.data = host_tensor.data.to(device_tensor.data.device, copy=True)


def dump_tensor(file_name: str | Path, tensor: Tensor) -> None:
    """Write a host tensor to one file, values as carried, no code in it."""
    spec = {
        "dtype": tensor.dtype.name,
        "layout": tensor.layout.name,
        "order": list(_memory_order(tensor.data)),
    }
    data = tensor.data.permute(spec["order"]).contiguous()
    save_file({"data": data}, str(file_name), metadata={"tensor": json.dumps(spec)})


def load_tensor(file_name: str | Path, *, device: MeshDevice | None = None) -> Tensor:
    """Map a file written by dump_tensor; nothing is read until it is used."""
    with safe_open(str(file_name), framework="pt") as file:
        spec = json.loads(file.metadata()["tensor"])
        data = file.get_tensor("data")
    inverse = [spec["order"].index(dim) for dim in range(data.dim())]
    data = data.permute(inverse)
    tensor = Tensor(data, tuple(data.shape[2:]), DataType[spec["dtype"]], Layout[spec["layout"]])
    return tensor if device is None else to_device(tensor, device)


def _memory_order(data: torch.Tensor) -> list[int]:
    """Dims from slowest to fastest in memory: transposed weights stay as matmul wants them."""
    return sorted(range(data.dim()), key=lambda dim: -data.stride(dim))


for _function in (
    from_torch, to_torch, get_device_tensors, dump_tensor, load_tensor,
    ReplicateTensorToMesh, ShardTensorToMesh, ShardTensor2dMesh,
    ConcatMeshToTensor, ConcatMesh2dToTensor,
):  # fmt: skip
    op(_function.__name__)(_function)
