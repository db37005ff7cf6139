"""How ops are told to compute: kernel configs, activations, program configs.

Frozen values with the wheel's parameter names; the op records show their fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends.emulator.api.types import MathFidelity, Name


class UnaryOpType(Name):
    EXP = 0
    RECIP = 1
    GELU = 2
    RELU = 4
    SIGMOID = 6
    SILU = 58


@dataclass(frozen=True)
class UnaryWithParam:
    """An activation with its parameters."""

    op_type: UnaryOpType
    param: float | None = None


@dataclass(frozen=True, kw_only=True)
class WormholeComputeKernelConfig:
    """How the matrix and vector units compute; the same class serves Blackhole."""

    math_fidelity: MathFidelity = MathFidelity.LoFi
    math_approx_mode: bool = True
    fp32_dest_acc_en: bool = False
    packer_l1_acc: bool = False
    dst_full_sync_en: bool = False


def init_device_compute_kernel_config(
    arch: Any,
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
        math_fidelity=math_fidelity,
        math_approx_mode=math_approx_mode,
        fp32_dest_acc_en=fp32_dest_acc_en,
        packer_l1_acc=packer_l1_acc,
        dst_full_sync_en=dst_full_sync_en,
    )


class ProgramConfig:
    """Base of all program configs."""


@dataclass(frozen=True, kw_only=True)
class MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig(ProgramConfig):
    """Weights stream from their DRAM banks; activations and output are width-sharded in L1."""

    in0_block_w: int
    per_core_M: int
    per_core_N: int
    fused_activation: Any = None
    num_workers_per_dram_bank: int = 1


@dataclass(frozen=True, kw_only=True)
class MatmulMultiCoreReuseMultiCastProgramConfig(ProgramConfig):
    """A 2D grid: rows of cores share blocks of in0, columns share blocks of in1."""

    compute_with_storage_grid_size: Any
    in0_block_w: int
    out_subblock_h: int
    out_subblock_w: int
    out_block_h: int | None = None
    out_block_w: int | None = None
    per_core_M: int
    per_core_N: int
    transpose_mcast: bool
    fused_activation: Any = None
    fuse_batch: bool = True
    allowed_worker_cores: Any = None


@dataclass(frozen=True, kw_only=True)
class MatmulMultiCoreReuseMultiCast1DProgramConfig(ProgramConfig):
    """Every core has a block of columns (mcast_in0) or of rows of the output.

    With `gather_in0` the cores form a ring, and blocks of in0 go round it.
    """

    compute_with_storage_grid_size: Any
    in0_block_w: int
    out_subblock_h: int
    out_subblock_w: int
    out_block_h: int | None = None
    out_block_w: int | None = None
    per_core_M: int
    per_core_N: int
    fuse_batch: bool
    fused_activation: Any = None
    mcast_in0: bool
    gather_in0: bool = False
    num_global_cb_receivers: int = 1
    untilize_out: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerNormShardedMultiCoreProgramConfig(ProgramConfig):
    """Shards of [block_h, block_w] tiles on a grid."""

    compute_with_storage_grid_size: Any
    subblock_w: int
    block_h: int
    block_w: int
    inplace: bool


@dataclass(frozen=True, kw_only=True)
class SDPAProgramConfig(ProgramConfig):
    """Grid and chunk sizes of scaled dot-product attention."""

    compute_with_storage_grid_size: Any
    sub_core_grids: Any = None
    q_chunk_size: int
    k_chunk_size: int
    exp_approx_mode: bool | None = None
    max_cores_per_head_batch: int = 16


def grid_xy(grid: Any) -> tuple[int, int]:
    """Columns and rows of a grid given as CoreCoord, CoreGrid or a pair."""
    return (grid.x, grid.y) if hasattr(grid, "x") else (grid[0], grid[1])
