"""The vocabulary of TT-NN: data types, layouts, core ranges, memory configs.

Plain frozen values that print like the wheel's. Program configs are in configs.py, meshes in
system.py; behaviour is in chip/tensor.py and ops/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import torch

from backends.op_record import TILE_BYTES

TILE = 32


class Name(Enum):
    """An enum that prints as TT-NN's do: DataType.BFLOAT16."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    __str__ = __repr__
    __hash__ = object.__hash__  # members are single objects; Enum's own hash is slow


class DataType(Name):
    BFLOAT16 = 0
    FLOAT32 = 1
    UINT32 = 2
    BFLOAT8_B = 3
    BFLOAT4_B = 4
    UINT8 = 5
    UINT16 = 6
    INT32 = 7

    carrier: torch.dtype  # torch type that holds every value of this type exactly
    tile_bytes: int  # of one 32 x 32 tile
    is_block: bool  # 16 values of a row share one exponent
    is_float: bool


# bfloat16 has 8 significant bits, so it holds block values (7 or 3 bits) without loss
for _type, _carrier in (
    (DataType.BFLOAT16, torch.bfloat16),
    (DataType.BFLOAT8_B, torch.bfloat16),
    (DataType.BFLOAT4_B, torch.bfloat16),
    (DataType.FLOAT32, torch.float32),
    (DataType.UINT32, torch.int32),
    (DataType.INT32, torch.int32),
    (DataType.UINT16, torch.int32),
    (DataType.UINT8, torch.int32),
):
    _type.carrier, _type.tile_bytes = _carrier, TILE_BYTES[_type.name.lower()]
    _type.is_block = _type in (DataType.BFLOAT8_B, DataType.BFLOAT4_B)
    _type.is_float = _carrier.is_floating_point


class Layout(Name):
    ROW_MAJOR = 0
    TILE = 1


class BufferType(Name):
    DRAM = 0
    L1 = 1
    L1_SMALL = 3
    TRACE = 4


class TensorMemoryLayout(Name):
    INTERLEAVED = 0
    HEIGHT_SHARDED = 2
    WIDTH_SHARDED = 3
    BLOCK_SHARDED = 4


class ShardOrientation(Name):
    ROW_MAJOR = 0
    COL_MAJOR = 1


class ShardStrategy(Name):
    HEIGHT = 1
    WIDTH = 2
    BLOCK = 3


class MathFidelity(Name):
    LoFi = 0
    HiFi2 = 2
    HiFi3 = 3
    HiFi4 = 4


class Topology(Name):
    Linear = 1
    Ring = 2
    Mesh = 3
    Torus = 4


@dataclass(frozen=True, order=True)
class CoreCoord:
    x: int
    y: int

    def __repr__(self) -> str:
        return f"{self.x}-{self.y}"


@dataclass(frozen=True)
class CoreGrid:
    x: int
    y: int

    @property
    def num_cores(self) -> int:
        return self.x * self.y

    def __repr__(self) -> str:
        return f"ttnn.CoreGrid(x={self.x}, y={self.y})"


@dataclass(frozen=True, order=True)
class CoreRange:
    """Cores start..end, both included."""

    start: CoreCoord
    end: CoreCoord

    @property
    def columns(self) -> int:
        return self.end.x - self.start.x + 1

    @property
    def rows(self) -> int:
        return self.end.y - self.start.y + 1

    @property
    def num_cores(self) -> int:
        return self.columns * self.rows

    def __repr__(self) -> str:
        return f"[{self.start!r} - {self.end!r}]"


class CoreRangeSet:
    """A set of rectangles of cores: in the order of a list, else in row order."""

    def __init__(self, ranges: Iterable[CoreRange]) -> None:
        if not isinstance(ranges, list):
            ranges = sorted(ranges, key=lambda part: (part.start.y, part.start.x))
        self._ranges = tuple(ranges)
        self._hash = hash(self._ranges)

    def ranges(self) -> tuple[CoreRange, ...]:
        return self._ranges

    def num_cores(self) -> int:
        return sum(part.num_cores for part in self._ranges)

    def bounding_box(self) -> CoreRange:
        starts = [part.start for part in self._ranges]
        ends = [part.end for part in self._ranges]
        return CoreRange(
            CoreCoord(min(core.x for core in starts), min(core.y for core in starts)),
            CoreCoord(max(core.x for core in ends), max(core.y for core in ends)),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CoreRangeSet) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return "{" + ", ".join(map(repr, self._ranges)) + "}"


def overlap(first: CoreRangeSet, second: CoreRangeSet) -> bool:
    """Whether two sets share a core."""
    return any(
        a.start.x <= b.end.x and b.start.x <= a.end.x and a.start.y <= b.end.y
        and b.start.y <= a.end.y
        for a in first.ranges() for b in second.ranges()
    )  # fmt: skip


def core_rectangle(columns: int, rows: int) -> CoreRangeSet:
    """The cores of a rectangle at the origin."""
    return CoreRangeSet([CoreRange(CoreCoord(0, 0), CoreCoord(columns - 1, rows - 1))])


def num_cores_to_corerangeset(
    target_num_cores: int, grid_size: CoreCoord, row_wise: bool = False
) -> CoreRangeSet:
    """The first `target_num_cores` cores of a grid: whole rows (or columns), then the rest."""
    across, along = (grid_size.x, grid_size.y) if row_wise else (grid_size.y, grid_size.x)
    if target_num_cores > across * along:
        raise RuntimeError(
            f"TT_FATAL: Target number of cores {target_num_cores} is greater than total available "
            f"cores {across * along}"
        )
    full, rest = divmod(target_num_cores, across)
    spans = []
    if full:
        spans.append(((0, 0), (across - 1, full - 1)))
    if rest:
        spans.append(((0, full), (rest - 1, full)))
    ranges = []
    for first, last in spans:
        a, b = (first, last) if row_wise else (first[::-1], last[::-1])
        ranges.append(CoreRange(CoreCoord(*a), CoreCoord(*b)))
    return CoreRangeSet(ranges)


class ShardSpec:
    """Cores (or DRAM banks) and the elements [height, width] each of them holds."""

    def __init__(
        self,
        grid: CoreRangeSet,
        shard_shape: Sequence[int],
        shard_orientation: ShardOrientation = ShardOrientation.ROW_MAJOR,
    ) -> None:
        self.grid, self.orientation = grid, shard_orientation
        self._shape = (int(shard_shape[0]), int(shard_shape[1]))
        self._key = (grid, self._shape, shard_orientation)

    @property
    def shape(self) -> list[int]:
        return list(self._shape)

    def num_cores(self) -> int:
        return self.grid.num_cores()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardSpec) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        cores = ", ".join(
            f'{{"start":{{"x":{part.start.x},"y":{part.start.y}}},'
            f'"end":{{"x":{part.end.x},"y":{part.end.y}}}}}'
            for part in self.grid.ranges()
        )
        return (
            f"ShardSpec{{grid=[{cores}], shape={self.shape}, "
            f"orientation=ShardOrientation::{self.orientation.name}}}"
        )


class MemoryConfig:
    """Where a tensor lies: layout over cores or banks, DRAM or L1, and the shards."""

    __slots__ = ("memory_layout", "buffer_type", "shard_spec", "_hash")

    def __init__(
        self,
        memory_layout: TensorMemoryLayout = TensorMemoryLayout.INTERLEAVED,
        buffer_type: BufferType = BufferType.DRAM,
        shard_spec: ShardSpec | None = None,
    ) -> None:
        self.memory_layout, self.buffer_type = memory_layout, buffer_type
        self.shard_spec = shard_spec
        self._hash = hash((memory_layout, buffer_type, shard_spec))

    def is_sharded(self) -> bool:
        return self.memory_layout is not TensorMemoryLayout.INTERLEAVED

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, MemoryConfig)
            and self._hash == other._hash
            and self.memory_layout is other.memory_layout
            and self.buffer_type is other.buffer_type
            and self.shard_spec == other.shard_spec
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return (
            f"MemoryConfig(memory_layout=TensorMemoryLayout::{self.memory_layout.name},"
            f"buffer_type=BufferType::{self.buffer_type.name},"
            f"shard_spec={self.shard_spec or 'std::nullopt'},nd_shard_spec=std::nullopt,"
            "created_with_nd_shard_spec=0,per_core_allocation=0,range_lockstep_allocation=0)"
        )


DRAM_MEMORY_CONFIG = MemoryConfig()
L1_MEMORY_CONFIG = MemoryConfig(buffer_type=BufferType.L1)
L1_WIDTH_SHARDED_MEMORY_CONFIG = MemoryConfig(TensorMemoryLayout.WIDTH_SHARDED, BufferType.L1)
L1_HEIGHT_SHARDED_MEMORY_CONFIG = MemoryConfig(TensorMemoryLayout.HEIGHT_SHARDED, BufferType.L1)
L1_BLOCK_SHARDED_MEMORY_CONFIG = MemoryConfig(TensorMemoryLayout.BLOCK_SHARDED, BufferType.L1)

_LAYOUT_OF = {
    ShardStrategy.HEIGHT: TensorMemoryLayout.HEIGHT_SHARDED,
    ShardStrategy.WIDTH: TensorMemoryLayout.WIDTH_SHARDED,
    ShardStrategy.BLOCK: TensorMemoryLayout.BLOCK_SHARDED,
}


def create_sharded_memory_config(
    shape: Sequence[int],
    core_grid: CoreGrid | CoreRange | CoreRangeSet,
    strategy: ShardStrategy,
    orientation: ShardOrientation | None = None,
    use_height_and_width_as_shard_shape: bool = False,
) -> MemoryConfig:
    """L1 memory config of shards over a grid; `shape` is one shard's or the whole tensor's."""
    if isinstance(core_grid, CoreGrid):
        grid = core_rectangle(core_grid.x, core_grid.y)
    else:
        grid = core_grid if isinstance(core_grid, CoreRangeSet) else CoreRangeSet([core_grid])
    orientation = orientation or ShardOrientation.ROW_MAJOR
    if use_height_and_width_as_shard_shape:
        height, width = shape
    else:
        height, width = math.prod(shape[:-1]), shape[-1]
        down, across = _cuts(grid, strategy, orientation)
        height, width = -(-height // down), -(-width // across)
    spec = ShardSpec(grid, (height, width), orientation)
    return MemoryConfig(_LAYOUT_OF[strategy], BufferType.L1, spec)


def _cuts(
    grid: CoreRangeSet, strategy: ShardStrategy, orientation: ShardOrientation
) -> tuple[int, int]:
    """Into how many shards the height and the width are cut."""
    if strategy is ShardStrategy.HEIGHT:
        return grid.num_cores(), 1
    if strategy is ShardStrategy.WIDTH:
        return 1, grid.num_cores()
    box = grid.bounding_box()
    if orientation is ShardOrientation.ROW_MAJOR:
        return box.rows, box.columns
    return box.columns, box.rows


@lru_cache(maxsize=8192)
def padded(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Shape in memory: tiles are whole, so the last two dims (at least) are multiples of 32."""
    if layout is Layout.ROW_MAJOR or not shape:
        return tuple(shape)
    shape = (1, *shape) if len(shape) == 1 else tuple(shape)
    return (*shape[:-2], *(-(-size // TILE) * TILE for size in shape[-2:]))


@lru_cache(maxsize=8192)
def stored_bytes(shape: tuple[int, ...], dtype: DataType, layout: Layout) -> int:
    """Bytes of one chip's part as the device stores it."""
    return math.prod(padded(shape, layout)) * dtype.tile_bytes // TILE**2
