"""The vocabulary of TT-NN: data types, layouts, memory and program configs, core ranges.

Plain frozen values that print like the wheel's. Behaviour is elsewhere: tensor.py, ops/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

TILE = 32


class _Name(Enum):
    """An enum that prints as TT-NN's do: DataType.BFLOAT16."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    __str__ = __repr__


class DataType(_Name):
    BFLOAT16 = 0
    FLOAT32 = 1
    UINT32 = 2
    BFLOAT8_B = 3
    BFLOAT4_B = 4
    UINT8 = 5
    UINT16 = 6
    INT32 = 7

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def is_block(self) -> bool:
        """16 values of a row share one exponent."""
        return self in (DataType.BFLOAT8_B, DataType.BFLOAT4_B)

    @property
    def carrier(self) -> torch.dtype:
        """Torch type that holds every value of this type exactly."""
        return _CARRIERS[self]

    @property
    def tile_bytes(self) -> int:
        """Bytes of one 32 x 32 tile: block formats add one exponent byte per 16 values."""
        return _TILE_BYTES[self]


_FLOATS = (DataType.BFLOAT16, DataType.FLOAT32, DataType.BFLOAT8_B, DataType.BFLOAT4_B)
# bfloat16 has 8 significant bits, so it holds block values (7 or 3 bits) without loss
_CARRIERS = {
    DataType.BFLOAT16: torch.bfloat16,
    DataType.BFLOAT8_B: torch.bfloat16,
    DataType.BFLOAT4_B: torch.bfloat16,
    DataType.FLOAT32: torch.float32,
    DataType.UINT32: torch.int32,
    DataType.INT32: torch.int32,
    DataType.UINT16: torch.int32,
    DataType.UINT8: torch.int32,
}
_TILE_BYTES = {
    DataType.BFLOAT16: 2048,
    DataType.BFLOAT8_B: 1088,
    DataType.BFLOAT4_B: 576,
    DataType.FLOAT32: 4096,
    DataType.UINT32: 4096,
    DataType.INT32: 4096,
    DataType.UINT16: 2048,
    DataType.UINT8: 1024,
}


class Layout(_Name):
    ROW_MAJOR = 0
    TILE = 1


class BufferType(_Name):
    DRAM = 0
    L1 = 1
    SYSTEM_MEMORY = 2
    L1_SMALL = 3
    TRACE = 4


class TensorMemoryLayout(_Name):
    INTERLEAVED = 0
    HEIGHT_SHARDED = 2
    WIDTH_SHARDED = 3
    BLOCK_SHARDED = 4


class ShardOrientation(_Name):
    ROW_MAJOR = 0
    COL_MAJOR = 1


class ShardStrategy(_Name):
    HEIGHT = 1
    WIDTH = 2
    BLOCK = 3


class MathFidelity(_Name):
    LoFi = 0
    HiFi2 = 2
    HiFi3 = 3
    HiFi4 = 4


class Topology(_Name):
    Ring = 1
    Linear = 2
    Mesh = 3
    Torus = 4


class UnaryOpType(_Name):
    RELU = 0
    GELU = 1
    SILU = 2
    EXP = 3
    RECIP = 4
    SIGMOID = 5


class Arch(_Name):
    WORMHOLE_B0 = 0
    BLACKHOLE = 1


class DispatchCoreType(_Name):
    WORKER = 0
    ETH = 1


class DispatchCoreAxis(_Name):
    ROW = 0
    COL = 1


@dataclass(frozen=True)
class DispatchCoreConfig:
    """Which cores send commands; grids here are as the product is opened (device_specs.py)."""

    type: DispatchCoreType = DispatchCoreType.WORKER
    axis: DispatchCoreAxis = DispatchCoreAxis.ROW


@dataclass(frozen=True, order=True)
class CoreCoord:
    x: int
    y: int


@dataclass(frozen=True)
class CoreGrid:
    x: int
    y: int

    @property
    def num_cores(self) -> int:
        return self.x * self.y


@dataclass(frozen=True, order=True)
class CoreRange:
    """Cores start..end, both included."""

    start: CoreCoord
    end: CoreCoord

    @property
    def num_cores(self) -> int:
        return (self.end.x - self.start.x + 1) * (self.end.y - self.start.y + 1)

    def __str__(self) -> str:
        return f"[{self.start.x}-{self.start.y} - {self.end.x}-{self.end.y}]"


class CoreRangeSet:
    """A set of rectangles of cores, kept in row order."""

    def __init__(self, ranges: Iterable[CoreRange]) -> None:
        self._ranges = tuple(sorted(ranges, key=lambda r: (r.start.y, r.start.x)))

    def ranges(self) -> tuple[CoreRange, ...]:
        return self._ranges

    def num_cores(self) -> int:
        return sum(part.num_cores for part in self._ranges)

    def bounding_box(self) -> CoreRange:
        starts = [part.start for part in self._ranges]
        ends = [part.end for part in self._ranges]
        return CoreRange(
            CoreCoord(min(c.x for c in starts), min(c.y for c in starts)),
            CoreCoord(max(c.x for c in ends), max(c.y for c in ends)),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CoreRangeSet) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(self._ranges)

    def __str__(self) -> str:
        return "{" + ", ".join(map(str, self._ranges)) + "}"

    __repr__ = __str__


def num_cores_to_corerangeset(
    target_num_cores: int, grid_size: CoreCoord, row_wise: bool = False
) -> CoreRangeSet:
    """The first `target_num_cores` cores of a grid: whole rows (or columns), then the rest."""
    across, along = (grid_size.x, grid_size.y) if row_wise else (grid_size.y, grid_size.x)
    if target_num_cores > across * along:
        raise RuntimeError(
            f"TT_FATAL: Target number of cores {target_num_cores} is greater than total number "
            f"of available cores {across * along}."
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


@dataclass(frozen=True)
class ShardSpec:
    """Cores (or DRAM banks) and the elements [height, width] each of them holds."""

    grid: CoreRangeSet
    shape: Sequence[int]
    orientation: ShardOrientation = ShardOrientation.ROW_MAJOR

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    def num_cores(self) -> int:
        return self.grid.num_cores()


@dataclass(frozen=True)
class MemoryConfig:
    """Where a tensor lies: layout over cores or banks, DRAM or L1, and the shards."""

    memory_layout: TensorMemoryLayout = TensorMemoryLayout.INTERLEAVED
    buffer_type: BufferType = BufferType.DRAM
    shard_spec: ShardSpec | None = None

    def is_sharded(self) -> bool:
        return self.memory_layout is not TensorMemoryLayout.INTERLEAVED


DRAM_MEMORY_CONFIG = MemoryConfig()
L1_MEMORY_CONFIG = MemoryConfig(buffer_type=BufferType.L1)
L1_WIDTH_SHARDED_MEMORY_CONFIG = MemoryConfig(TensorMemoryLayout.WIDTH_SHARDED, BufferType.L1)
L1_HEIGHT_SHARDED_MEMORY_CONFIG = MemoryConfig(TensorMemoryLayout.HEIGHT_SHARDED, BufferType.L1)
L1_BLOCK_SHARDED_MEMORY_CONFIG = MemoryConfig(TensorMemoryLayout.BLOCK_SHARDED, BufferType.L1)


def create_sharded_memory_config(
    shape: Sequence[int],
    core_grid: CoreGrid | CoreRange | CoreRangeSet,
    strategy: ShardStrategy,
    orientation: ShardOrientation | None = None,
    use_height_and_width_as_shard_shape: bool = False,
) -> MemoryConfig:
    """L1 memory config of shards over a grid; `shape` is one shard's or the whole tensor's."""
    if isinstance(core_grid, CoreGrid):
        last = CoreCoord(core_grid.x - 1, core_grid.y - 1)
        grid = CoreRangeSet([CoreRange(CoreCoord(0, 0), last)])
        columns, rows = core_grid.x, core_grid.y
    else:
        grid = core_grid if isinstance(core_grid, CoreRangeSet) else CoreRangeSet([core_grid])
        box = grid.bounding_box()
        columns, rows = box.end.x - box.start.x + 1, box.end.y - box.start.y + 1
    cores = grid.num_cores()
    if use_height_and_width_as_shard_shape:
        height, width = shape
    else:
        height, width = math.prod(shape[:-1]), shape[-1]
        if strategy is ShardStrategy.HEIGHT:
            height = -(-height // cores)
        elif strategy is ShardStrategy.WIDTH:
            width = -(-width // cores)
        else:
            height, width = -(-height // rows), -(-width // columns)
    layout = {
        ShardStrategy.HEIGHT: TensorMemoryLayout.HEIGHT_SHARDED,
        ShardStrategy.WIDTH: TensorMemoryLayout.WIDTH_SHARDED,
        ShardStrategy.BLOCK: TensorMemoryLayout.BLOCK_SHARDED,
    }[strategy]
    spec = ShardSpec(grid, (height, width), orientation or ShardOrientation.ROW_MAJOR)
    return MemoryConfig(layout, BufferType.L1, spec)


@dataclass(frozen=True)
class WormholeComputeKernelConfig:
    """How the matrix and vector units compute; the same class serves Blackhole."""

    math_fidelity: MathFidelity = MathFidelity.LoFi
    math_approx_mode: bool = True
    fp32_dest_acc_en: bool = False
    packer_l1_acc: bool = False
    dst_full_sync_en: bool = False


def init_device_compute_kernel_config(
    arch: Arch,
    device_kernel_config: WormholeComputeKernelConfig | None = None,
    *,
    math_fidelity: MathFidelity = MathFidelity.LoFi,
    math_approx_mode: bool = True,
    fp32_dest_acc_en: bool = False,
    packer_l1_acc: bool = False,
    dst_full_sync_en: bool = False,
) -> WormholeComputeKernelConfig:
    """A compute kernel config of the architecture."""
    return device_kernel_config or WormholeComputeKernelConfig(
        math_fidelity, math_approx_mode, fp32_dest_acc_en, packer_l1_acc, dst_full_sync_en
    )


class ProgramConfig:
    """Base of all program configs: numbers the op records show."""


@dataclass(frozen=True)
class MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig(ProgramConfig):
    in0_block_w: int
    per_core_M: int
    per_core_N: int
    fused_activation: Any = None


@dataclass(frozen=True)
class MatmulMultiCoreReuseMultiCastProgramConfig(ProgramConfig):
    compute_with_storage_grid_size: Any
    in0_block_w: int
    out_subblock_h: int
    out_subblock_w: int
    per_core_M: int
    per_core_N: int
    transpose_mcast: bool
    fused_activation: Any = None
    fuse_batch: bool = True
    out_block_h: int | None = None
    out_block_w: int | None = None


@dataclass(frozen=True)
class MatmulMultiCoreReuseMultiCast1DProgramConfig(ProgramConfig):
    compute_with_storage_grid_size: Any
    in0_block_w: int
    out_subblock_h: int
    out_subblock_w: int
    per_core_M: int
    per_core_N: int
    fuse_batch: bool = True
    fused_activation: Any = None
    mcast_in0: bool = True


@dataclass(frozen=True)
class LayerNormShardedMultiCoreProgramConfig(ProgramConfig):
    compute_with_storage_grid_size: Any
    subblock_w: int
    block_h: int
    block_w: int
    inplace: bool = False


@dataclass(frozen=True)
class SDPAProgramConfig(ProgramConfig):
    compute_with_storage_grid_size: Any
    q_chunk_size: int = 0
    k_chunk_size: int = 0
    exp_approx_mode: bool | None = None
    sub_core_grids: Any = None


@dataclass(frozen=True)
class MeshShape:
    """Rows and columns of a mesh; iterates and indexes like the wheel's."""

    dims: tuple[int, ...] = field(init=False)

    def __init__(self, *dims: int) -> None:
        values = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
        object.__setattr__(self, "dims", values)

    def __iter__(self) -> Any:
        return iter(self.dims)

    def __getitem__(self, index: int) -> int:
        return self.dims[index]

    def __len__(self) -> int:
        return len(self.dims)

    def mesh_size(self) -> int:
        return math.prod(self.dims)

    def __str__(self) -> str:
        return f"MeshShape({list(self.dims)})"
