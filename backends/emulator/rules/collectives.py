"""Which chips take part in a collective, over which links, and what its record says of that."""

from __future__ import annotations

import math
from typing import Any

from backends.emulator.api.parts import cores_of
from backends.emulator.api.types import (
    TILE,
    DataType,
    MemoryConfig,
    TensorMemoryLayout,
    Topology,
    padded,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import fatal, require
from backends.emulator.numerics.sums import Line
from backends.work import link_bytes

PACKET_BYTES = 4352  # of a scatter: 4 tiles of bfloat8_b


def line_of(name: str, x: Tensor, cluster_axis: int | None) -> tuple[Line, int]:
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


def check_links(x: Tensor, line: Line, num_links: int | None) -> None:
    """No more links than neighbours are wired with."""
    for axis, _ in line:
        have = x.device().spec.links[axis]  # type: ignore[union-attr]
        if num_links is not None and num_links > have > 0:
            fatal(
                f"Requested link index {have} is out of bounds. {have} ethernet channels available "
                f"along mesh axis {axis}, {num_links} asked for"
            )


def attributes(
    line: Line, chips: int, num_links: int | None, topology: Topology | None, dim: int | None
) -> dict[str, Any]:
    """What is recorded of every collective; the axis is None where it runs over both."""
    return {
        "cluster_axis": line[0][0] if len(line) == 1 else None,
        "num_devices": chips,
        "num_links": num_links,
        "topology": topology,
        "dim": dim,
    }


def busiest_bytes(whole: int, chips: int, topology: Topology | None) -> int:
    """Bytes over the busiest link of a gather or scatter of `whole` bytes."""
    return link_bytes(whole, chips, ring=topology is Topology.Ring)


def check_scattered(
    x: Tensor, packets: Tensor, dim: int, cluster_axis: int, chips: int, num_links: int | None
) -> None:
    """The scatters of one tile row run along rows of 2 or 4 chips and want shards of 32 rows.

    They send from cores of their own, which TT-NN does not keep apart from those of the packets.
    """
    require(dim == 3, f"dim must be 3, got {dim}")
    require(cluster_axis == 1, f"cluster_axis must be 1, got {cluster_axis}")
    require(chips in (2, 4), f"ring_devices must be 4 or 2, got {chips}")
    for name, tensor in (("input_tensor", x), ("intermediate_packet_buffer", packets)):
        spec = tensor.memory_config().shard_spec
        require(spec is not None, f"{name} must have a shard spec")
        require(spec.shape[0] == TILE, f"{name} shard height must be 32 but got {spec.shape[0]}")
    senders = [(5, 3), (6, 3), *([(2, 8), (3, 8)] if num_links == 4 else [(3, 3)])]
    held = {(core.x, core.y) for core in cores_of(packets.memory_config().shard_spec.grid)}
    both = held & set(senders[: num_links or 1])
    require(not both, f"packets lie on cores {sorted(both)}, which send them")


def check_packets(tiles: int, dtype: DataType) -> None:
    """A core's tiles go into packets in even parts of them, or fill more than one."""
    pages = PACKET_BYTES // dtype.tile_bytes
    require(
        pages % tiles == 0 or tiles > pages,
        "must have num_pages per packet divisible by num_tiles per core, or num_tiles per core "
        f"larger than num_pages per packet, got {pages} pages and {tiles} tiles",
    )


# where the op that joins heads finds its users, and the cores it tells that heads are there
JOINED_FROM = (((1, 0), (3, 1)), ((1, 2), (2, 2)))
JOINING = frozenset((x, y) for x in (5, 6) for y in (0, 1, 2, 4, 5, 6, 7, 9))


def check_joined(x: Tensor, memory: MemoryConfig, num_heads: int, chips: int) -> None:
    """Heads are joined for 8 users a chip on cores of the op's own, each half a head of the result.

    TT-NN looks at the input alone: with other cores for the result it waits for ever.
    """
    layout = x.memory_config().memory_layout
    require(
        layout is TensorMemoryLayout.HEIGHT_SHARDED, f"Unsupported memory layout {layout.name}."
    )
    held = x.memory_config().shard_spec
    assert held is not None
    found = tuple(
        ((part.start.x, part.start.y), (part.end.x, part.end.y)) for part in held.grid.ranges()
    )
    require(found == JOINED_FROM, "Unsupported input core ranges!")
    lead, users, _, width = padded(x.dims, x.layout)
    require(
        (lead, users, width) == (1, 8, 128),
        "Unsupported input shape, should be [1, 8, 32, 128] or [1, 8, 8, 128]!",
    )
    require(chips == 4 and num_heads == 8, f"{chips} chips of {num_heads} heads, not 4 of 8")
    result = memory.shard_spec
    first = cores_of(result.grid)[: len(JOINING)] if result is not None else []
    require(
        result is not None
        and tuple(result.shape) == (TILE, 64)
        and {(core.x, core.y) for core in first} == JOINING,
        "the result wants 64 columns on each core, on those first that are told of its heads",
    )


def check_summed(x: Tensor, buffer: Tensor, memory: MemoryConfig, chips: int) -> None:
    """The sum of whole parts takes columns in shards, with room beside each for all parts."""
    require(chips % 2 == 0, f"AllReduceAsync currently only supports even ring sizes, got {chips}")
    found = {"input tensor": x.memory_config(), "buffer tensor": buffer.memory_config()}
    for what, one in (*found.items(), ("output tensor", memory)):
        require(
            one.memory_layout is TensorMemoryLayout.WIDTH_SHARDED,
            f"Unsupported memory layout for {what} {one.memory_layout.name}.",
        )
    room, result = buffer.memory_config().shard_spec, memory.shard_spec
    require(room is not None and result is not None, "input and buffer must be sharded")
    assert room is not None and result is not None
    held = {(core.x, core.y) for core in cores_of(room.grid)}
    require(
        all((core.x, core.y) in held for core in cores_of(result.grid)),
        "The output tensor must reside on a subset of the cores of the buffer tensor",
    )
    # TT-NN counts numbers alone, and writes beyond a buffer of a smaller format
    require(
        buffer.dtype.tile_bytes >= x.dtype.tile_bytes,
        f"parts in {x.dtype.name} do not fit a buffer in {buffer.dtype.name}",
    )
    needed, has = chips * math.prod(result.shape), math.prod(room.shape)
    require(
        needed <= has,
        "The shard size for the buffer must be large enough to hold the intermediate tensor. "
        f"Require at least {needed} but has {has}",
    )
