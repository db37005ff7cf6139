"""Traffic between chips: a gather or sum over a mesh axis is a torch op over a mesh dim.

Chips that share values are stored once, but count: a gather repeats them, a sum adds them up. Sums
are made in float32 and rounded once; on silicon every hop rounds.
"""

from __future__ import annotations

from backends.emulator.api.parts import SubDeviceId
from backends.emulator.api.types import TILE, Layout, MemoryConfig, Topology
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import (
    Out,
    launch,
    memory_or_default,
    op,
    require,
    unchanged,
)
from backends.emulator.numerics.sums import mesh_sum, own_part, side_by_side
from backends.emulator.rules.collectives import attributes, busiest_bytes, check_links, line_of


@op("all_gather")
def all_gather(
    input_tensor: Tensor,
    dim: int,
    *,
    cluster_axis: int | None = None,
    memory_config: MemoryConfig | None = None,
    output_tensor: Tensor | None = None,
    subdevice_id: SubDeviceId | None = None,
    num_links: int | None = None,
    topology: Topology | None = None,
) -> Tensor:
    """Every chip gets the parts of all chips of its line, side by side along `dim`."""
    x, into = input_tensor, output_tensor
    line, chips = line_of("all_gather", x, cluster_axis)
    require(len(line) < 2, "1D fabric on a 2D mesh_device requires cluster_axis to be set")
    ((axis, _),) = line
    dim %= len(x.dims)
    shape = (*x.dims[:dim], x.dims[dim] * chips, *x.dims[dim + 1 :])
    require(into is None or into.dims == shape, f"the output tensor has to be {list(shape)}")
    return launch(
        "all_gather",
        [x] if into is None else [x, into],
        [Out(shape, x.dtype, x.layout, memory_or_default(memory_config, x))],
        lambda data, *_: side_by_side(data, axis, chips, dim),
        into=into,
        exact=dim < len(x.dims) - 1 or x.dims[-1] % TILE == 0,  # blocks stay as they are
        link_bytes=busiest_bytes(x.buffer_bytes() * chips, chips, topology),
        attributes=attributes(line, chips, num_links, topology, dim),
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
    line, chips = line_of("reduce_scatter", x, cluster_axis)
    check_links(x, line, num_links)
    dim %= len(x.dims)
    require(
        x.dims[dim] % chips == 0,
        f"Number of tiles at dimension {dim} must be divisible by ring_size: {x.dims[dim]} over "
        f"{chips} chips",
    )
    shape = (*x.dims[:dim], x.dims[dim] // chips, *x.dims[dim + 1 :])
    dtype = x.dtype
    return launch(
        "reduce_scatter",
        [x],
        [Out(shape, x.dtype, x.layout, memory_or_default(memory_config, x))],
        lambda data: mesh_sum(data, line, dtype, dim=dim),
        exact=True,
        link_bytes=busiest_bytes(x.buffer_bytes(), chips, topology),
        attributes=attributes(line, chips, num_links, topology, dim),
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
    line, chips = line_of("all_reduce", x, cluster_axis)
    check_links(x, line, num_links)
    dtype = x.dtype
    return launch(
        "all_reduce",
        [x],
        [Out(x.dims, x.dtype, x.layout, memory_or_default(memory_config, x))],
        lambda data: mesh_sum(data, line, dtype),
        exact=True,
        link_bytes=2 * busiest_bytes(x.buffer_bytes(), chips, topology),  # a scatter and a gather
        attributes=attributes(line, chips, num_links, topology, None),
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
    line, chips = line_of("mesh_partition", x, cluster_axis)
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
