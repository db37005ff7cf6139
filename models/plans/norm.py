"""Placement of norms and of the residual stream they read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from backends import ttnn
from backends.work import shared_rows
from models.plans.fused import fused_grid, fused_norm, on_ring
from models.plans.matmul import Kwargs, Spread, rectangle
from models.plans.target import SHORT, Habits, Phase, Target
from models.sharding import TILE

# From this width on, 1D prefill normalises shards and gathers afterwards: gathering the
# statistics alone is cheaper than repeating the norm of a wide stream on every chip.
DISTRIBUTED_FROM_DIM = 4096
# Where cores share rows, they sum up statistics together: microseconds, and cycles of a tile.
SUM_US, TILE_CYCLES = 6.5, 567
# Bytes of L1 that each of them needs then, and for every tile of a whole row: seen on mock chips
SHARED_BYTES, SHARED_TILE_BYTES = 47_104, 12_288


@dataclass(frozen=True)
class NormPlan:
    """Where the norm runs; `distributed` exchanges statistics instead of activations."""

    distributed: bool
    input_memory: Any  # the gathered (or sharded) stream
    stats_memory: Any
    arguments: Kwargs  # of rms_norm, or of its two halves
    fused: Kwargs | None = None  # of the op that sums and exchanges, too
    output: Kwargs = field(default_factory=dict)  # more of the second half
    shares: Callable[[int], bool] = lambda rows: False  # whether cores share rows of that many

    def halves(self, rows: int) -> Kwargs:
        """Arguments of both halves for so many rows."""
        return {**self.arguments, "use_2d_core_grid": True} if self.shares(rows) else self.arguments


def residual_memory(target: Target, phase: Phase, rows: int | None = None) -> Any:
    """Memory of the residual stream: L1 width-sharded in decode, DRAM in prefill.

    A short prompt (of `rows`) on a 2D mesh, whose norms read the stream as it lies, stays in L1.
    """
    if phase is Phase.PREFILL:
        stays = rows is not None and rows <= SHORT and target.is_own and target.sharding.is_2d
        return ttnn.L1_MEMORY_CONFIG if stays else ttnn.DRAM_MEMORY_CONFIG
    sizes = target.sharding
    if sizes.ring_cores:
        return fused_grid(target).residual
    if target.residual_width == sizes.local_dim:
        return target.stream.memory  # norms read it as it lies
    return rectangle(sizes.local_residual).memory


def norm_plan(target: Target, phase: Phase) -> NormPlan:
    """Where the norms of a phase run, and their arguments."""
    sizes = target.sharding
    distributed = sizes.is_2d
    if phase is Phase.PREFILL:
        on_line = sizes.num_chips > 1 and not sizes.is_2d
        distributed |= on_line and (target.is_own or sizes.dim > DISTRIBUTED_FROM_DIM)
        # what is normed in shares can travel in blocks: half the traffic of the stream itself
        blocks = on_line and target.is_own
        return NormPlan(
            distributed,
            ttnn.DRAM_MEMORY_CONFIG,
            ttnn.DRAM_MEMORY_CONFIG,
            {"compute_kernel_config": target.norm_kernel},
            output={"dtype": target.activation_dtype(ttnn.bfloat8_b)} if blocks else {},
            shares=partial(shares_rows, target),
        )
    stats = ttnn.create_sharded_memory_config(
        (TILE, TILE * sizes.cols),
        ttnn.CoreGrid(x=1, y=1),
        ttnn.ShardStrategy.WIDTH,
        ttnn.ShardOrientation.ROW_MAJOR,
        use_height_and_width_as_shard_shape=True,
    )
    return NormPlan(
        distributed,
        target.stream.memory,
        stats,
        {
            "program_config": sharded_norm_config(target.stream, sizes.local_dim),
            "compute_kernel_config": target.norm_kernel,
        },
        fused_norm(target, on_ring(sizes.local_dim, target.spec)) if sizes.ring_cores else None,
    )


def shares_rows(target: Target, rows: int) -> bool:
    """Whether a norm of shares is done sooner where columns of cores take parts of each row.

    With whole rows a core each, a short prompt leaves most cores idle.
    """
    if not target.is_own:
        return target.habits is Habits.GALAXY_2025 and rows == 128  # as it was timed
    high, wide = -(-rows // TILE), target.sharding.local_residual // TILE
    grid = target.spec.compute_grid
    if high > min(grid):
        return False  # a second row of tiles on a core is right in the newest kernels only
    if SHARED_BYTES + wide * SHARED_TILE_BYTES > target.left_bytes:
        return False
    saved = wide - math.prod(shared_rows(high, wide, grid))
    return saved * TILE_CYCLES / (1000 * target.spec.clock_ghz) > SUM_US


def sharded_norm_config(stream: Spread, width: int) -> Any:
    """Program config of a norm over one tile row that lies as `stream` says."""
    tiles = width // TILE // stream.cores
    return ttnn.LayerNormShardedMultiCoreProgramConfig(
        compute_with_storage_grid_size=list(stream.grid),
        subblock_w=max(i for i in range(1, 5) if tiles % i == 0),
        block_h=1,
        block_w=tiles,
        inplace=False,
    )
