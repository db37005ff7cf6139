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
from backends.emulator.loops.moves import contiguous

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
    """[N, 1, S, (H + 2K) W] to query [N, H, S, W] and keys, values [N, K, S, W].

    With `input_kv` [N, 1, S, 2K W] queries come alone from `input` [N, 1, S, H W].
    """
    kv_heads = num_kv_heads or num_heads
    counts = (num_heads, kv_heads, kv_heads)
    inputs = [input] if input_kv is None else [input, input_kv]
    for x, heads in zip(inputs, _heads_in(counts, len(inputs)), strict=True):
        _check_whole(x)
        require(len(x.dims) == 4, f"input must have four dims, got {x.shape}")
        require(x.dims[1] == 1, f"Unsupported input sequence length {x.dims[1]} is not equal to 1")
        require(
            x.padded_shape[3] % heads == 0,
            f"Unsupported input shape {x.shape}: {heads} heads do not divide it",
        )
    users, _, length, width = input.dims
    head = width // _heads_in(counts, len(inputs))[0]
    if input_kv is not None:
        require(input_kv.dims[2] == length, "KV tensor seq_len dim must be same as Q")
        require(
            input_kv.dims[3] == 2 * kv_heads * head,
            f"Unsupported KV shape {input_kv.shape}: not 2 x {kv_heads} heads of {head}",
        )
    shapes = [(users, count, length, head) for count in counts]
    if transpose_k_heads:
        shapes[1] = (users, kv_heads, head, length)
    memory = memory_or_default(memory_config, input)

    def compute(*data: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = torch.cat(data, dim=-1).squeeze(3) if len(data) > 1 else data[0].squeeze(3)
        q, k, v = (
            part.unflatten(-1, (count, head)).transpose(-2, -3)
            for part, count in zip(
                parts.split([count * head for count in counts], dim=-1), counts, strict=True
            )
        )
        return q, k.mT if transpose_k_heads else k, v

    return launch(
        "experimental.nlp_create_qkv_heads",
        inputs,
        [Out(shape, input.dtype, Layout.TILE, memory) for shape in shapes],
        compute,
        exact=head % TILE == 0 and not transpose_k_heads,
        attributes={"num_heads": num_heads, "num_kv_heads": kv_heads},
    )


def _heads_in(counts: tuple[int, int, int], inputs: int) -> list[int]:
    """Heads in each input: all in one, or those of queries and of keys and values."""
    return [sum(counts)] if inputs == 1 else [counts[0], counts[1] + counts[2]]


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
        lambda x: contiguous(x.transpose(-2, -3)).flatten(-2).unsqueeze(3),
        exact=head % TILE == 0,
    )
