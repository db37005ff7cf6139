"""DRAM and L1 of one chip: which placements are valid, what a buffer takes, when memory is full.

Banks allocate in step: a buffer takes the same bytes of every bank, those of its fullest one.
Fragmentation is not emulated, nor are the circular buffers that programs put into L1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from backends.emulator.api.types import (
    TILE,
    DataType,
    Layout,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
    padded,
)

_ROW_ALIGNMENT = {"DRAM": 32, "L1": 16}  # bytes; rows of a row-major tensor start there


@dataclass(frozen=True)
class MemoryView:
    """DRAM or L1 of one chip, per bank, in bytes."""

    num_banks: int
    total_bytes_per_bank: int
    total_bytes_allocated_per_bank: int

    @property
    def total_bytes_free_per_bank(self) -> int:
        return self.total_bytes_per_bank - self.total_bytes_allocated_per_bank


class Allocation:
    """One buffer; freed when asked, or when the last tensor on it is gone."""

    __slots__ = ("pool", "bank_bytes", "alive")

    def __init__(self, pool: Pool, bank_bytes: int) -> None:
        self.pool, self.bank_bytes, self.alive = pool, bank_bytes, True

    def free(self) -> None:
        if self.alive:
            self.alive = False
            self.pool.allocated -= self.bank_bytes

    __del__ = free


class Pool:
    """The banks of one memory of one chip; chips of a mesh allocate alike."""

    def __init__(self, name: str, columns: int, rows: int, bank_bytes: int) -> None:
        self.name, self.grid, self.bank_bytes = name, (columns, rows), bank_bytes
        self.banks = columns * rows
        self.allocated = self.peak = 0  # bytes per bank

    def take(
        self, shape: tuple[int, ...], dtype: DataType, layout: Layout, memory: MemoryConfig
    ) -> Allocation:
        """Reserve a buffer; invalid placements and a full memory are refused in TT-NN's words."""
        size = bank_share(shape, dtype, layout, memory, self.name, self.grid)
        if self.allocated + size > self.bank_bytes:
            free = self.bank_bytes - self.allocated
            raise RuntimeError(
                f"TT_FATAL: Out of Memory: Not enough space to allocate {size * self.banks} B "
                f"{self.name} buffer across {self.banks} banks, where each bank needs to store "
                f"{size} B, but bank size is {self.bank_bytes} B (allocated: {self.allocated} B, "
                f"free: {free} B, largest free block: {free} B)"
            )
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        return Allocation(self, size)

    def view(self) -> MemoryView:
        return MemoryView(self.banks, self.bank_bytes, self.allocated)


@lru_cache(maxsize=8192)
def bank_share(
    shape: tuple[int, ...],
    dtype: DataType,
    layout: Layout,
    memory: MemoryConfig,
    pool: str,
    grid: tuple[int, int],
) -> int:
    """Bytes a buffer takes of each bank; raises where TT-NN refuses the placement."""
    if dtype.is_block and layout is not Layout.TILE:
        raise RuntimeError(f"TT_FATAL: Only TILE layout is supported for {dtype.name} dtype!")
    if memory.is_sharded():
        height, width = _checked_shards(shape, layout, memory, pool, grid).shape
        return height * width * dtype.tile_bytes // TILE**2
    shape = padded(shape, layout)
    if layout is Layout.TILE:
        pages, page = math.prod(shape) // TILE**2, dtype.tile_bytes
    else:
        pages, page = math.prod(shape[:-1]), shape[-1] * dtype.tile_bytes // TILE**2
        step = _ROW_ALIGNMENT[pool]
        page = -(-page // step) * step
    return -(-pages // (grid[0] * grid[1])) * page


def _checked_shards(
    shape: tuple[int, ...],
    layout: Layout,
    memory: MemoryConfig,
    pool: str,
    grid: tuple[int, int],
) -> ShardSpec:
    """The shards, if they are whole tiles on cores that exist and cover the tensor."""
    spec = memory.shard_spec
    if spec is None:
        raise RuntimeError(
            "TT_FATAL: MemoryConfig must have Shard Spec specified for sharded memory layout"
        )
    height, width = spec.shape
    if layout is Layout.TILE and (height % TILE or width % TILE):
        raise RuntimeError(
            f"TT_FATAL: Physical shard shape ({height}, {width}) must be tile {{32, 32}} sized!"
        )
    last = spec.grid.bounding_box().end
    if last.x >= grid[0] or last.y >= grid[1]:
        raise RuntimeError(
            f"TT_FATAL: Invalid shard grid: shard core ({last.x}, {last.y}) has no {pool} bank on "
            f"this device, which has {grid[0] * grid[1]} of them"
        )
    whole = padded(shape, layout)
    rows, columns = math.prod(whole[:-1]), whole[-1]
    cores = spec.num_cores()
    down, across = -(-rows // height), -(-columns // width)
    kind = memory.memory_layout
    if kind is TensorMemoryLayout.WIDTH_SHARDED:
        _require_equal("height", height, rows, "width")
        _require_cores("width", across, cores)
    elif kind is TensorMemoryLayout.HEIGHT_SHARDED:
        _require_equal("width", width, across * width if layout is Layout.ROW_MAJOR else columns,
                       "height")  # fmt: skip
        _require_cores("height", down, cores)
    else:
        _require_cores("both dims", down * across, cores)
    return spec


def _require_equal(side: str, shard: int, whole: int, kind: str) -> None:
    if shard != whole:
        raise RuntimeError(
            f"TT_FATAL: Shard {side} {shard} must match physical {side} {whole} for {kind} sharded"
        )


def _require_cores(along: str, shards: int, cores: int) -> None:
    if shards > cores:
        raise RuntimeError(
            f"TT_FATAL: Number of shards along {along} {shards} must not exceed number of cores "
            f"{cores}"
        )
