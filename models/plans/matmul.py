"""Placement of matrix multiplications: DRAM-sharded in decode, 2D multicast in prefill.

Decode reads every weight once for at most 32 rows, so it is bound by DRAM: the weight lies width-
sharded over the DRAM banks and one core beside each bank streams its slice. Prefill is bound by
arithmetic: an 8-wide grid shares blocks of rows and columns. Next: mlp.py, attention.py use these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends import ttnn
from backends.device_specs import DeviceSpec
from models.precision import FIDELITY_SETTINGS, Fidelity, Precision
from models.sharding import TILE, best_core_count

GRID_COLS = (
    8  # products of weights dealt to banks have an 8x8 rectangle of cores; wider gain little
)
GRID_ROWS = 8
MOST_CORES = 64  # that share a row of activations
LONGEST_BLOCK = 8  # tiles of activations that go round at once
PREFILL_ROWS = 1024  # rows one 2D matmul takes at once; longer inputs go in slices of this size
# the same where 7 columns of cores share the rows: 128 tiles waste a core's share less than 32 do
NARROW_ROWS = 4096
L1_BUDGET = 1_100_000  # bytes per core for one prefill matmul's buffers
STREAM_BUDGET = 800_000  # bytes per core for the weight blocks of a decode matmul; its output,
# its input and the residual stream share the rest of L1
TILE_BYTES = {Precision.BFP4: 576, Precision.BFP8: 1088, Precision.BF16: 2048}

Kwargs = Mapping[str, Any]


def dtype_of(precision: Precision) -> Any:
    """TT-NN data type of a stored precision."""
    return {
        Precision.BFP4: ttnn.bfloat4_b,
        Precision.BFP8: ttnn.bfloat8_b,
        Precision.BF16: ttnn.bfloat16,
    }[precision]


@dataclass(frozen=True)
class Kernels:
    """Compute kernel configs of one architecture, by fidelity setting."""

    arch: Any

    def __getitem__(self, fidelity: Fidelity) -> Any:
        setting = FIDELITY_SETTINGS[fidelity]
        return ttnn.init_device_compute_kernel_config(
            self.arch,
            math_fidelity=getattr(ttnn.MathFidelity, setting.math_fidelity),
            math_approx_mode=setting.approx,
            fp32_dest_acc_en=setting.fp32_dest_acc,
            packer_l1_acc=setting.packer_l1_acc,
        )


def is_narrow(spec: DeviceSpec) -> bool:
    """Whether a chip has fewer columns of cores than weights that are dealt to banks want."""
    return spec.compute_grid[0] < GRID_COLS


def grid_of(cores: int) -> tuple[int, int]:
    """The widest rectangle (columns, rows) of exactly `cores` cores."""
    for rows in range(1, GRID_ROWS + 1):
        if cores % rows == 0 and cores // rows <= GRID_COLS:
            return cores // rows, rows
    raise ValueError(f"{cores} cores form no rectangle within {GRID_COLS}x{GRID_ROWS}")


@dataclass(frozen=True)
class Spread:
    """How one tile row of activations lies in L1: equal shares of its width on `cores`."""

    cores: int
    grid: tuple[int, int]  # columns, rows of the cores, where they form a rectangle
    memory: Any


def spread(width: int, spec: DeviceSpec, *, for_norm: bool = False) -> Spread:
    """Where the input of a decode matmul lies: on the cores that hand it out soonest.

    It goes round to the cores beside the DRAM banks in blocks, and a block (0.65 us) costs about
    what a tile costs the op that wrote it: the sum of both counts is kept least. Cores are taken
    row by row, as matmuls place their results; a norm needs whole rows of them.
    """
    columns, rows = spec.compute_grid
    tiles = width // TILE

    def cost(cores: int) -> tuple[int, int]:
        share = tiles // cores
        return tiles // _largest_divisor(share, LONGEST_BLOCK) + share, -cores

    cores = min(
        (
            count
            for count in range(1, min(MOST_CORES, columns * rows, tiles) + 1)
            if tiles % count == 0 and not (for_norm and count > columns and count % columns)
        ),
        key=cost,
    )
    return Spread(cores, (min(cores, columns), -(-cores // columns)), by_rows(width, cores, spec))


def most_cores(width: int) -> int:
    """The most cores that share a tile row evenly: for results that only go on elsewhere."""
    return _largest_divisor(width // TILE, MOST_CORES)


def by_rows(width: int, cores: int, spec: DeviceSpec) -> Any:
    """L1 memory of one tile row of activations on the first `cores` cores, row by row."""
    return _width_shards(
        width // cores,
        ttnn.num_cores_to_corerangeset(cores, ttnn.CoreCoord(*spec.compute_grid), row_wise=True),
    )


def rectangle(width: int, *, most: int = 32) -> Spread:
    """The most cores up to `most` that share a tile row evenly and form a rectangle."""
    cores = best_core_count(width // TILE, most)
    columns, rows = grid_of(cores)
    memory = _width_shards(width // cores, ttnn.CoreGrid(x=columns, y=rows))
    return Spread(cores, (columns, rows), memory)


def _width_shards(share: int, cores: Any) -> Any:
    return ttnn.create_sharded_memory_config(
        (TILE, share),
        cores,
        ttnn.ShardStrategy.WIDTH,
        ttnn.ShardOrientation.ROW_MAJOR,
        use_height_and_width_as_shard_shape=True,
    )


def height_sharded(users: int, width: int, grid: tuple[int, int] = (8, 8), rows: int = 1) -> Any:
    """L1 memory with one user per core: (`rows` tiles) x width on each, row-major over `grid`."""
    cores = ttnn.num_cores_to_corerangeset(users, ttnn.CoreCoord(*grid), row_wise=True)
    return ttnn.create_sharded_memory_config(
        (rows * TILE, width),
        cores,
        ttnn.ShardStrategy.HEIGHT,
        ttnn.ShardOrientation.ROW_MAJOR,
        use_height_and_width_as_shard_shape=True,
    )


def weight_memory(k: int, n: int, spec: DeviceSpec, *, ring: int | None = None) -> Any:
    """DRAM memory of a [k, n] weight: one slice of columns per DRAM bank, padded to whole tiles.

    Where products are made on a `ring` of cores, each bank feeds some of them, all alike.
    """
    banks = spec.dram_banks
    cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(banks - 1, 0))})
    fed = ring or banks
    columns = math.ceil(n / (TILE * fed)) * TILE * (fed // banks)
    shard = ttnn.ShardSpec(cores, [k, columns], ttnn.ShardOrientation.ROW_MAJOR)
    return ttnn.MemoryConfig(ttnn.TensorMemoryLayout.WIDTH_SHARDED, ttnn.BufferType.DRAM, shard)


def columns_at_bank(n: int, spec: DeviceSpec) -> int:
    """Tiles of a row of `n` columns that the core at a DRAM bank makes."""
    return math.ceil(n / (TILE * spec.dram_banks))


def stream_bytes(n: int, spec: DeviceSpec, weight: Precision) -> int:
    """Bytes of L1 there that a block of weights takes for each tile of K: it holds three."""
    return 3 * columns_at_bank(n, spec) * TILE_BYTES[weight]


def decode_linear(
    k: int, n: int, *, kernel: Any, dtype: Any, spec: DeviceSpec, weight: Precision,
    cores: int, out_cores: int, most: int = LONGEST_BLOCK,
) -> Kwargs:  # fmt: skip
    """Arguments of a DRAM-sharded linear of one tile row, `most` tiles of K in a block.

    Its input lies on `cores` cores; its result on the first `out_cores` ones, row by row.
    """
    tiles_per_core = k // TILE // cores
    longest = max(1, min(most, STREAM_BUDGET // stream_bytes(n, spec, weight)))
    return {
        "program_config": ttnn.MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig(
            in0_block_w=_largest_divisor(tiles_per_core, longest),
            per_core_M=1,
            per_core_N=math.ceil(n / (TILE * out_cores)),
            fused_activation=None,
        ),
        "memory_config": ttnn.L1_WIDTH_SHARDED_MEMORY_CONFIG,
        "compute_kernel_config": kernel,
        "dtype": dtype,
    }


@dataclass(frozen=True)
class PrefillLinear:
    """A 2D matmul: `rows` per slice, and the arguments of ttnn.linear.

    `beside`: the same where the scatter of its sum runs beside it (scattered.py), and where;
    `behind`: where the gather of its input does (gathered.py).
    """

    rows: int
    kwargs: Kwargs
    beside: Kwargs | None = None
    behind: Kwargs | None = None


def prefill_rows(length: int, most: int = PREFILL_ROWS) -> int:
    """Rows per slice: the largest even share of `length` that is whole tiles and at most `most`."""
    slices = math.ceil(length / most)
    while length % (slices * TILE):
        slices += 1
    return length // slices


def prefill_linear(
    length: int, k: int, n: int, *, kernel: Any, fp32: bool, dtype: Any, spec: DeviceSpec,
    most: int | None = None, least: int = 128, activation: Any = None,
    weight: Precision | None = None, high: int | None = None, room: int = L1_BUDGET,
    parts: int = 1,
) -> PrefillLinear:  # fmt: skip
    """Plan of a [length, k] x [k, n] product, in slices of `most` rows at most, halved until they
    fit into `room` bytes of a core's L1 or are `least`.

    Weights sharded by DRAM bank have an 8-wide grid, on Blackhole one as wide as the banks; it has
    as many rows as the chip, where that leaves fewer tiles to a core, and never more than `high`.
    Each block of K lies in one of its equal `parts`. A narrow chip shares columns of the product
    over its rows of cores, and rows over its columns: the weight has to lie page by page for that.
    """
    # bytes of a tile; where the weight's format is not told, nothing is known to be small
    result = 1088 if weight is not None and dtype == ttnn.bfloat8_b else 2048
    of_weight = TILE_BYTES[weight or Precision.BF16]
    turned = is_narrow(spec)
    columns = GRID_COLS if spec.arch == "wormhole_b0" else min(GRID_COLS, spec.dram_banks)
    most_rows = high or (GRID_ROWS if weight is None else spec.compute_grid[1])
    if turned:
        most_rows, columns = spec.compute_grid
    most = most or (NARROW_ROWS if turned else PREFILL_ROWS)
    while True:
        rows = prefill_rows(length, most)
        grid_rows = min(GRID_ROWS, most_rows, rows // TILE)
        fewest = math.ceil(rows / TILE / most_rows)
        if math.ceil(rows / TILE / grid_rows) > fewest:
            grid_rows = math.ceil(rows / TILE / fewest)
        per_core_m = math.ceil(rows / TILE / grid_rows)
        per_core_n = math.ceil(n / TILE / columns)
        # the output block and its accumulators
        fixed = per_core_m * per_core_n * (result + (4096 if fp32 else 2048))
        # of both inputs two blocks of one tile of K; activations may come in bfloat16
        per_k = 2 * (per_core_m * 2048 + per_core_n * of_weight)
        fits = 4 if weight is None else max(1, min(4, (room - fixed) // per_k))
        block_k = _largest_divisor(k // TILE // parts, fits)
        if fixed + block_k * per_k <= room or most <= least:
            break
        most //= 2
    config = ttnn.MatmulMultiCoreReuseMultiCastProgramConfig(
        compute_with_storage_grid_size=(grid_rows, columns) if turned else (columns, grid_rows),
        in0_block_w=block_k,
        out_subblock_h=1,
        out_subblock_w=_largest_divisor(per_core_n, 4),
        per_core_M=per_core_m,
        per_core_N=per_core_n,
        transpose_mcast=turned,
        fused_activation=activation,
        fuse_batch=rows == length,
    )
    kwargs = {
        "program_config": config,
        "memory_config": ttnn.DRAM_MEMORY_CONFIG,
        "compute_kernel_config": kernel,
        "dtype": dtype,
    }
    return PrefillLinear(rows, kwargs)


def sliced_linear(x_11SK: Any, weight: Any, plan: PrefillLinear, **more: Any) -> Any:
    """Linear over all rows of `x_11SK` in the plan's slices; `more` may hold a bias."""
    length, k = x_11SK.shape[2], x_11SK.shape[3]
    if plan.rows == length:
        return ttnn.linear(x_11SK, weight, **plan.kwargs, **more)
    sliced = ttnn.reshape(x_11SK, (1, length // plan.rows, plan.rows, k))
    out = ttnn.linear(sliced, weight, **plan.kwargs, **more)
    return ttnn.reshape(out, (1, 1, length, out.shape[3]))


def _largest_divisor(value: int, most: int) -> int:
    return max(i for i in range(1, most + 1) if value % i == 0)
