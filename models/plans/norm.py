"""Placement of norms and of the residual stream they read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from backends import ttnn
from models.plans.fused import fused_grid, fused_norm, on_ring
from models.plans.matmul import Kwargs, Spread, rectangle
from models.plans.target import Phase, Target
from models.sharding import TILE

# From this width on, 1D prefill normalises shards and gathers afterwards: gathering the
# statistics alone is cheaper than repeating the norm of a wide stream on every chip.
DISTRIBUTED_FROM_DIM = 4096


@dataclass(frozen=True)
class NormPlan:
    """Where the norm runs; `distributed` exchanges statistics instead of activations."""

    distributed: bool
    input_memory: Any  # the gathered (or sharded) stream
    stats_memory: Any
    arguments: Kwargs  # of rms_norm, or of its two halves
    fused: Kwargs | None = None  # of the op that sums and exchanges, too
    output: Kwargs = field(default_factory=dict)  # more of the second half


def residual_memory(target: Target, phase: Phase) -> Any:
    """Memory of the residual stream: L1 width-sharded in decode, DRAM in prefill."""
    if phase is Phase.PREFILL:
        return ttnn.DRAM_MEMORY_CONFIG
    sizes = target.sharding
    if sizes.ring_cores:
        return fused_grid(target).residual
    if target.residual_width == sizes.local_dim:
        return target.stream.memory  # norms read it as it lies
    return rectangle(sizes.local_residual).memory


def norm_plan(target: Target, phase: Phase) -> NormPlan:
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
