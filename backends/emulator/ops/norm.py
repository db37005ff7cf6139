"""Root-mean-square norms: whole, and split into statistics and application for wide streams."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.configs import LayerNormShardedMultiCoreProgramConfig
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.tensor import Tensor
from backends.emulator.types import (
    TILE,
    CoreCoord,
    CoreRange,
    CoreRangeSet,
    DataType,
    Layout,
    MemoryConfig,
    ShardSpec,
)


def _check_weight(x: Tensor, weight: Tensor | None) -> None:
    if weight is None or weight.layout is Layout.TILE:
        return
    count = 1
    for size in weight.shape:
        count *= size
    require(
        weight.shape[-1] == TILE and count == x.padded_shape[-1],
        "Gamma's last padded dim needs to equal tile width and gamma's volume needs to align with "
        f"last padded dim of input, got {list(weight.shape)} for {list(x.padded_shape)}",
    )


def _check_blocks(x: Tensor, config: Any) -> None:
    if isinstance(config, LayerNormShardedMultiCoreProgramConfig):
        require(x.is_sharded(), "a sharded norm needs a sharded input")
        cores = x.memory_config().shard_spec.num_cores()
        tiles = -(-x.padded_shape[-1] // TILE // cores)
        require(
            config.block_w == tiles,
            f"block_w ({config.block_w}) must equal to K (in tiles) / num_cores ({tiles})",
        )


def _scaled(x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    out = x.float() * scale
    if weight is None:
        return out
    flat = weight.reshape(*weight.shape[:2], *(1,) * (x.dim() - 3), -1)
    return out.mul_(flat)


@op("rms_norm")
def rms_norm(
    input_tensor: Tensor,
    *,
    epsilon: float = 1e-12,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual_input_tensor: Tensor | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    plain = bias is None and residual_input_tensor is None
    require(plain, "rms_norm: bias and residual are not emulated")
    _check_weight(input_tensor, weight)
    _check_blocks(input_tensor, program_config)

    def compute(x: torch.Tensor, *w: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        return _scaled(wide, scale, w[0] if w else None)

    return launch(
        "rms_norm",
        [input_tensor] if weight is None else [input_tensor, weight],
        [
            Out(
                tuple(input_tensor.shape),
                input_tensor.dtype,
                input_tensor.layout,
                memory_config or input_tensor.memory_config(),
            )
        ],
        compute,
        attributes={
            "epsilon": epsilon,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


@op("rms_norm_pre_all_gather")
def rms_norm_pre_all_gather(
    input_tensor: Tensor,
    *,
    dtype: DataType = DataType.BFLOAT16,
    residual_input_tensor: Tensor | None = None,
    compute_kernel_config: Any = None,
    program_config: Any = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Sums of squares, one tile wide: the value is in the tile's first column."""
    _check_blocks(input_tensor, program_config)
    shape = (*input_tensor.shape[:-1], TILE)
    memory = memory_config or input_tensor.memory_config()
    if input_tensor.is_sharded():
        first = CoreRangeSet([CoreRange(CoreCoord(0, 0), CoreCoord(0, 0))])
        shard = ShardSpec(first, (input_tensor.memory_config().shard_spec.shape[0], TILE))
        memory = MemoryConfig(memory.memory_layout, memory.buffer_type, shard)

    def compute(x: torch.Tensor) -> torch.Tensor:
        sums = x.float().square().sum(-1, keepdim=True)
        return torch.nn.functional.pad(sums, (0, TILE - 1))

    return launch(
        "rms_norm_pre_all_gather",
        [input_tensor],
        [Out(shape, dtype, input_tensor.layout, memory)],
        compute,
        attributes={
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


@op("rms_norm_post_all_gather")
def rms_norm_post_all_gather(
    input_tensor: Tensor,
    stats: Tensor,
    *,
    epsilon: float = 1e-12,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: Any = None,
    program_config: Any = None,
    dtype: DataType | None = None,
) -> Tensor:
    """Apply the norm with every chip's sums of squares side by side in `stats`."""
    _check_weight(input_tensor, weight)
    _check_blocks(input_tensor, program_config)
    chips = stats.shape[-1] // TILE
    width = input_tensor.shape[-1] * chips

    def compute(x: torch.Tensor, sums: torch.Tensor, *w: torch.Tensor) -> torch.Tensor:
        total = sums[..., ::TILE].float().sum(-1, keepdim=True)
        return _scaled(x, (total / width + epsilon).rsqrt_(), w[0] if w else None)

    return launch(
        "rms_norm_post_all_gather",
        [input_tensor, stats] if weight is None else [input_tensor, stats, weight],
        [
            Out(
                tuple(input_tensor.shape),
                dtype or input_tensor.dtype,
                input_tensor.layout,
                memory_config or input_tensor.memory_config(),
            )
        ],
        compute,
        attributes={
            "epsilon": epsilon,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )
