"""Traffic between chips: a gather or sum over a mesh axis is a torch op over a mesh dim.

Chips that share values are stored once, but count: a gather repeats them, a sum adds them up. Sums
are made in float32 and rounded once; on silicon every hop rounds.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from backends.emulator.api.types import TILE, Layout, MemoryConfig, Topology
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import (
    Out,
    fatal,
    launch,
    memory_or_default,
    op,
    require,
    unchanged,
)
from backends.emulator.numerics.sums import Line, mesh_sum, own_part
from backends.work import link_bytes


def _line(name: str, x: Tensor, cluster_axis: int | None) -> tuple[Line, int]:
    """The axes a collective runs over and the number of chips in one group."""
    device = x.device()
    if device is None:
        fatal(f"{name}: Operands to {name} need to be on device!")
    shape = tuple(device.shape)
    axes = (0, 1) if cluster_axis is None else (cluster_axis % 2,)
    line = tuple((axis, shape[axis]) for axis in axes if shape[axis] > 1)
    alone = not line and name != "mesh_partition"  # one chip may keep what it holds
    require(not alone, f"{name} collective will only work for num_devices > 1, got 1")
    return line, math.prod(chips for _, chips in line)


def _check_links(x: Tensor, line: Line, num_links: int | None) -> None:
    for axis, _ in line:
        have = x.device().spec.links[axis]  # type: ignore[union-attr]
        if num_links is not None and num_links > have > 0:
            fatal(
                f"Requested link index {have} is out of bounds. {have} ethernet channels available "
                f"along mesh axis {axis}, {num_links} asked for"
            )


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
    x = input_tensor
    line, chips = _line("all_gather", x, cluster_axis)
    require(len(line) < 2, "1D fabric on a 2D mesh_device requires cluster_axis to be set")
    ((axis, _),) = line
    dim %= len(x.dims)
    shape = (*x.dims[:dim], x.dims[dim] * chips, *x.dims[dim + 1 :])

    def compute(data: torch.Tensor) -> torch.Tensor:
        if data.shape[axis] == 1:
            return torch.cat([data] * chips, dim + 2)
        return data.movedim(axis, dim + 1).flatten(dim + 1, dim + 2).unsqueeze(axis)

    return launch(
        "all_gather",
        [x],
        [Out(shape, x.dtype, x.layout, memory_or_default(memory_config, x))],
        compute,
        exact=dim < len(x.dims) - 1 or x.dims[-1] % TILE == 0,  # blocks stay as they are
        link_bytes=_link_bytes(x.buffer_bytes() * chips, chips, topology),
        attributes=_attributes(line, chips, num_links, topology, dim),
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
    x = input_tensor
    line, chips = _line("reduce_scatter", x, cluster_axis)
    _check_links(x, line, num_links)
    dim %= len(x.dims)
    require(
        x.dims[dim] % chips == 0,
        f"Number of tiles at dimension {dim} must be divisible by ring_size: {x.dims[dim]} over "
        f"{chips} chips",
    )
    shape = (*x.dims[:dim], x.dims[dim] // chips, *x.dims[dim + 1 :])
    return launch(
        "reduce_scatter",
        [x],
        [Out(shape, x.dtype, x.layout, memory_or_default(memory_config, x))],
        lambda data: mesh_sum(data, line, x.dtype, dim=dim),
        exact=True,
        link_bytes=_link_bytes(x.buffer_bytes(), chips, topology),
        attributes=_attributes(line, chips, num_links, topology, dim),
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
    x = input_tensor
    line, chips = _line("all_reduce", x, cluster_axis)
    _check_links(x, line, num_links)
    return launch(
        "all_reduce",
        [x],
        [Out(x.dims, x.dtype, x.layout, memory_or_default(memory_config, x))],
        lambda data: mesh_sum(data, line, x.dtype),
        exact=True,
        link_bytes=2 * _link_bytes(x.buffer_bytes(), chips, topology),  # a scatter and a gather
        attributes=_attributes(line, chips, num_links, topology, None),
    )


@op("mesh_partition")
def mesh_partition(
    input_tensor: Tensor,
    dim: int,
    cluster_axis: int | None = None,
    *,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Every chip keeps its own slice of what it holds; one chip has nothing to part."""
    x = input_tensor
    line, chips = _line("mesh_partition", x, cluster_axis)
    if chips == 1:
        return unchanged("mesh_partition", x)
    dim %= len(x.dims)
    require(
        x.dims[dim] % chips == 0,
        f"input shape {x.shape} must be divisible by cluster axis size {chips}",
    )
    shape = (*x.dims[:dim], x.dims[dim] // chips, *x.dims[dim + 1 :])
    require(
        x.layout is Layout.ROW_MAJOR or dim != len(x.dims) - 2 or shape[dim] % TILE == 0,
        "Can only slice tilized tensor with height begin index aligned to tiles",
    )
    return launch(
        "mesh_partition",
        [x],
        [Out(shape, x.dtype, x.layout, memory_or_default(memory_config, x))],
        lambda data: own_part(data, line, dim),
        attributes={"cluster_axis": cluster_axis, "dim": dim},
    )


def _link_bytes(whole: int, chips: int, topology: Topology | None) -> int:
    return link_bytes(whole, chips, ring=topology is Topology.Ring)


def _attributes(
    line: Line, chips: int, num_links: int | None, topology: Topology | None, dim: int | None
) -> dict[str, Any]:
    return {
        "cluster_axis": line[0][0] if len(line) == 1 else None,
        "num_devices": chips,
        "num_links": num_links,
        "topology": topology,
        "dim": dim,
    }
