"""Splitting fused projections into heads, turning them by position, joining them again."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.launch import Out, launch, op, require
from backends.emulator.tensor import Tensor
from backends.emulator.types import (
    DRAM_MEMORY_CONFIG,
    TILE,
    BufferType,
    DataType,
    Layout,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
    num_cores_to_corerangeset,
)


@op("experimental.nlp_create_qkv_heads")
def nlp_create_qkv_heads(
    input: Tensor,
    input_kv: Tensor | None = None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    transpose_k_heads: bool = True,
    memory_config: MemoryConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """[N, 1, S, (H + 2K) W] to query [N, H, S, W] and keys, values [N, K, S, W]."""
    require(
        input_kv is None and not transpose_k_heads, "separate or transposed keys are not emulated"
    )
    kv_heads = num_kv_heads or num_heads
    users, _, length, width = input.shape
    head = width // (num_heads + 2 * kv_heads)
    counts = (num_heads, kv_heads, kv_heads)
    memory = memory_config or DRAM_MEMORY_CONFIG

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = x.squeeze(3).split([count * head for count in counts], dim=-1)
        return tuple(
            part.unflatten(-1, (count, head)).transpose(-2, -3)
            for part, count in zip(parts, counts, strict=True)
        )

    return launch(
        "experimental.nlp_create_qkv_heads",
        [input],
        [Out((users, n, length, head), input.dtype, Layout.TILE, memory) for n in counts],
        compute,
        attributes={"num_heads": num_heads, "num_kv_heads": kv_heads},
    )


@op("experimental.nlp_create_qkv_heads_decode")
def nlp_create_qkv_heads_decode(
    input_tensor: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    overlap_qk_coregrid: bool | None = True,
    memory_config: MemoryConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """[1, 1, B, (H + 2K) W] to [1, B, H, W] and twice [1, B, K, W], a core per user."""
    require(input_tensor.dtype in (DataType.FLOAT32, DataType.BFLOAT16), "Unsupported data format")
    kv_heads = num_kv_heads or num_heads
    _, _, users, width = input_tensor.shape
    require(users <= TILE, f"Unsupported input shape = {input_tensor.shape}")
    head = width // (num_heads + 2 * kv_heads)
    counts = (num_heads, kv_heads, kv_heads)
    grid = num_cores_to_corerangeset(
        users, input_tensor.device().compute_with_storage_grid_size(), row_wise=True
    )

    def memory(heads: int) -> MemoryConfig:
        shard = ShardSpec(grid, (-(-heads // TILE) * TILE, head))
        return MemoryConfig(TensorMemoryLayout.HEIGHT_SHARDED, BufferType.L1, shard)

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = x.squeeze(2).split([count * head for count in counts], dim=-1)
        return tuple(
            part.unflatten(-1, (count, head)) for part, count in zip(parts, counts, strict=True)
        )

    return launch(
        "experimental.nlp_create_qkv_heads_decode",
        [input_tensor],
        [Out((1, users, n, head), input_tensor.dtype, Layout.TILE, memory(n)) for n in counts],
        compute,
        attributes={"num_heads": num_heads, "num_kv_heads": kv_heads},
    )


@op("experimental.nlp_concat_heads")
def nlp_concat_heads(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """[N, H, S, W] to [N, 1, S, H W]."""
    users, heads, length, head = input_tensor.shape
    memory = memory_config or DRAM_MEMORY_CONFIG
    return launch(
        "experimental.nlp_concat_heads",
        [input_tensor],
        [Out((users, 1, length, heads * head), input_tensor.dtype, Layout.TILE, memory)],
        lambda x: x.transpose(-2, -3).flatten(-2).unsqueeze(3),
    )


@op("experimental.nlp_concat_heads_decode")
def nlp_concat_heads_decode(
    input_tensor: Tensor,
    *,
    num_heads: int,
    memory_config: MemoryConfig | None = None,
    sub_core_grids: Any = None,
) -> Tensor:
    """[1, B, H, W] (a core per user) to [1, 1, 32, H W] (a core per head), idle rows zero."""
    require(input_tensor.is_sharded(), "Input tensor must be sharded")
    _, users, _, head = input_tensor.shape
    grid = num_cores_to_corerangeset(
        num_heads, input_tensor.device().compute_with_storage_grid_size(), row_wise=True
    )
    memory = MemoryConfig(
        TensorMemoryLayout.WIDTH_SHARDED, BufferType.L1, ShardSpec(grid, (TILE, head))
    )

    def compute(x: torch.Tensor) -> torch.Tensor:
        flat = x[..., :num_heads, :].flatten(-2).unsqueeze(2)
        return torch.nn.functional.pad(flat, (0, 0, 0, TILE - users)) if users < TILE else flat

    return launch(
        "experimental.nlp_concat_heads_decode",
        [input_tensor],
        [Out((1, 1, TILE, num_heads * head), input_tensor.dtype, Layout.TILE, memory)],
        compute,
        attributes={"num_heads": num_heads},
    )


@op("experimental.rotary_embedding_llama")
def rotary_embedding_llama(
    input_tensor: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    trans_mat: Tensor,
    *,
    is_decode_mode: bool = False,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    """x cos + (x trans) sin; the transformation acts on every 32 columns alike."""
    operands = [input_tensor, cos_cache, sin_cache, trans_mat]
    require(
        all(t.dtype is DataType.BFLOAT16 for t in operands),
        "All input tensors must have dtype = bfloat16",
    )
    require(input_tensor.shape[-1] <= 256, "Head dim must be less than 256")
    if is_decode_mode:
        for name, tensor in zip(("input", "cos", "sin", "transformation"), operands, strict=True):
            require(
                tensor.memory_config().memory_layout is TensorMemoryLayout.HEIGHT_SHARDED,
                f"{name} tensor for RoPE must be HEIGHT_SHARDED.",
            )
    length = input_tensor.shape[2]

    def compute(
        x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, trans: torch.Tensor
    ) -> torch.Tensor:
        if not is_decode_mode:
            cos, sin = cos[..., :length, :], sin[..., :length, :]
        wide = x.float()
        turn = trans[:, :, 0, 0, :TILE].float()
        if turn.shape[:2] == (1, 1):
            turned = wide.unflatten(-1, (-1, TILE)) @ turn[0, 0]
        else:
            turned = wide.unflatten(-1, (-1, TILE)) @ turn[:, :, None, None, None]
        return (wide * cos).addcmul_(turned.flatten(-2), sin.float())

    return launch(
        "experimental.rotary_embedding_llama",
        operands,
        [
            Out(
                tuple(input_tensor.shape),
                input_tensor.dtype,
                Layout.TILE,
                memory_config or input_tensor.memory_config(),
            )
        ],
        compute,
        attributes={"is_decode_mode": is_decode_mode},
    )
