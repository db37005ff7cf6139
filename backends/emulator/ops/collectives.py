"""Traffic between chips: a gather or sum over a mesh axis is a torch op over a mesh dim."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.launch import Out, fatal, launch, memory_or_default, op
from backends.emulator.tensor import Tensor
from backends.emulator.types import MemoryConfig, Topology


def _axis(name: str, x: Tensor, cluster_axis: int | None) -> tuple[int, int]:
    """Mesh axis and the number of chips along it."""
    device = x.device()
    if device is None:
        fatal(f"{name}: Operands to {name} need to be on device!")
    rows, cols = tuple(device.shape)
    if cluster_axis is None:
        if rows > 1 and cols > 1:
            fatal(f"{name} on a {rows}x{cols} mesh needs a cluster_axis")
        cluster_axis = 0 if rows > 1 else 1
    chips = (rows, cols)[cluster_axis]
    if chips == 1:
        fatal(f"{name} collective will only work for num_devices > 1, got 1")
    return cluster_axis, chips


def _check_links(x: Tensor, axis: int, num_links: int | None) -> None:
    have = x.device().spec.links[axis]
    if num_links is not None and num_links > have > 0:
        fatal(
            f"Requested link index {num_links - 1} is out of bounds. {have} ethernet channels "
            f"available along mesh axis {axis}"
        )


def _sum(x: torch.Tensor, axis: int, chips: int) -> torch.Tensor:
    """Sum over a mesh axis in float32; a replicated operand is added to itself."""
    if x.shape[axis] == 1:
        return x.float() * chips
    return x.float().sum(axis, keepdim=True)


@op("all_gather")
def all_gather(
    input_tensor: Tensor,
    dim: int,
    *,
    cluster_axis: int | None = None,
    memory_config: MemoryConfig | None = None,
    num_links: int | None = None,
    topology: Topology | None = None,
) -> Tensor:
    """Every chip gets the parts of all chips of its line, side by side along `dim`."""
    axis, chips = _axis("all_gather", input_tensor, cluster_axis)
    shape = list(input_tensor.shape)
    dim %= len(shape)
    shape[dim] *= chips

    def compute(x: torch.Tensor) -> torch.Tensor:
        if x.shape[axis] == 1:
            return torch.cat([x] * chips, dim + 2)
        return x.movedim(axis, dim + 1).flatten(dim + 1, dim + 2).unsqueeze(axis)

    return launch(
        "all_gather",
        [input_tensor],
        [
            Out(
                tuple(shape),
                input_tensor.dtype,
                input_tensor.layout,
                memory_or_default(memory_config, input_tensor),
            )
        ],
        compute,
        link_bytes=_gathered(input_tensor.buffer_bytes(), chips, topology),
        attributes=_attributes(axis, chips, num_links, topology, dim),
    )


@op("reduce_scatter")
def reduce_scatter(
    input_tensor: Tensor,
    dim: int,
    *,
    cluster_axis: int | None = None,
    memory_config: MemoryConfig | None = None,
    num_links: int | None = None,
    topology: Topology | None = None,
) -> Tensor:
    """Sum over a line; every chip keeps its slice of the sum along `dim`."""
    axis, chips = _axis("reduce_scatter", input_tensor, cluster_axis)
    _check_links(input_tensor, axis, num_links)
    shape = list(input_tensor.shape)
    dim %= len(shape)
    if shape[dim] % chips:
        fatal(f"reduce_scatter: dim {dim} of {shape[dim]} does not divide over {chips} devices")
    shape[dim] //= chips

    def compute(x: torch.Tensor) -> torch.Tensor:
        total = _sum(x, axis, chips).squeeze(axis)
        return total.unflatten(dim + 1, (chips, -1)).movedim(dim + 1, axis)

    return launch(
        "reduce_scatter",
        [input_tensor],
        [
            Out(
                tuple(shape),
                input_tensor.dtype,
                input_tensor.layout,
                memory_or_default(memory_config, input_tensor),
            )
        ],
        compute,
        link_bytes=_gathered(input_tensor.buffer_bytes() // chips, chips, topology),
        attributes=_attributes(axis, chips, num_links, topology, dim),
    )


@op("all_reduce")
def all_reduce(
    input_tensor: Tensor,
    *,
    cluster_axis: int | None = None,
    memory_config: MemoryConfig | None = None,
    num_links: int | None = None,
    topology: Topology | None = None,
) -> Tensor:
    """Sum over a line, whole on every chip."""
    axis, chips = _axis("all_reduce", input_tensor, cluster_axis)
    _check_links(input_tensor, axis, num_links)
    share = input_tensor.buffer_bytes() // chips
    return launch(
        "all_reduce",
        [input_tensor],
        [
            Out(
                tuple(input_tensor.shape),
                input_tensor.dtype,
                input_tensor.layout,
                memory_or_default(memory_config, input_tensor),
            )
        ],
        lambda x: _sum(x, axis, chips),
        link_bytes=2 * _gathered(share, chips, topology),
        attributes=_attributes(axis, chips, num_links, topology, None),
    )


@op("mesh_partition")
def mesh_partition(
    input_tensor: Tensor,
    dim: int,
    cluster_axis: int | None = None,
    *,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Every chip keeps its own slice of what all hold."""
    axis, chips = _axis("mesh_partition", input_tensor, cluster_axis)
    shape = list(input_tensor.shape)
    shape[dim] //= chips

    def compute(x: torch.Tensor) -> torch.Tensor:
        parts = x.unflatten(dim + 2, (chips, -1))
        if x.shape[axis] == 1:
            return parts.squeeze(axis).movedim(dim + 1, axis)
        index = torch.arange(chips)
        return torch.stack([parts.select(axis, i).select(dim + 1, i) for i in index], axis)

    return launch(
        "mesh_partition",
        [input_tensor],
        [
            Out(
                tuple(shape),
                input_tensor.dtype,
                input_tensor.layout,
                memory_or_default(memory_config, input_tensor),
            )
        ],
        compute,
    )


def _gathered(part_bytes: int, chips: int, topology: Topology | None) -> int:
    """Bytes over the busiest link direction: a ring sends both ways, a line's middle all parts."""
    passes = chips // 2 if topology is Topology.Ring else chips - 1
    return part_bytes * passes


def _attributes(
    axis: int, chips: int, num_links: int | None, topology: Topology | None, dim: int | None
) -> dict[str, Any]:
    return {
        "cluster_axis": axis,
        "num_devices": chips,
        "num_links": num_links,
        "topology": topology,
        "dim": dim,
    }
