"""Splitting fused projections of prompts into heads and joining heads again: moves only."""

from __future__ import annotations

import torch

from backends.emulator.api.types import (
    TILE,
    DataType,
    Layout,
    MemoryConfig,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, memory_or_default, op, require

_KINDS = (DataType.FLOAT32, DataType.BFLOAT16, DataType.BFLOAT8_B)


def _check_whole(x: Tensor) -> None:
    require(x.dtype in _KINDS, "Unsupported data format")
    require(x.layout is Layout.TILE, f"Input tensor layout must be TILE but got {x.layout}")


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
    require(input_kv is None, "separate keys and values are not emulated")
    _check_whole(input)
    require(len(input.dims) == 4, f"input must have four dims, got {input.shape}")
    kv_heads = num_kv_heads or num_heads
    users, one, length, width = input.dims
    require(one == 1, f"Unsupported input sequence length {one} is not equal to 1")
    require(
        input.padded_shape[3] % (num_heads + 2 * kv_heads) == 0,
        f"Unsupported input shape {input.shape}: {num_heads + 2 * kv_heads} heads do not divide it",
    )
    head = width // (num_heads + 2 * kv_heads)
    counts = (num_heads, kv_heads, kv_heads)
    shapes = [(users, count, length, head) for count in counts]
    if transpose_k_heads:
        shapes[1] = (users, kv_heads, head, length)
    memory = memory_or_default(memory_config, input)

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = x.squeeze(3).split([count * head for count in counts], dim=-1)
        q, k, v = (
            part.unflatten(-1, (count, head)).transpose(-2, -3)
            for part, count in zip(parts, counts, strict=True)
        )
        return q, k.mT if transpose_k_heads else k, v

    return launch(
        "experimental.nlp_create_qkv_heads",
        [input],
        [Out(shape, input.dtype, Layout.TILE, memory) for shape in shapes],
        compute,
        exact=head % TILE == 0 and not transpose_k_heads,
        attributes={"num_heads": num_heads, "num_kv_heads": kv_heads},
    )


@op("experimental.nlp_concat_heads")
def nlp_concat_heads(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    """[N, H, S, W] to [N, 1, S, H W]."""
    _check_whole(input_tensor)
    users, heads, length, head = input_tensor.dims
    memory = memory_or_default(memory_config, input_tensor)
    return launch(
        "experimental.nlp_concat_heads",
        [input_tensor],
        [Out((users, 1, length, heads * head), input_tensor.dtype, Layout.TILE, memory)],
        lambda x: x.transpose(-2, -3).flatten(-2).unsqueeze(3),
        exact=head % TILE == 0,
    )
