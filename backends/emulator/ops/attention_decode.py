"""Attention of one query per user over its cache, paged or dense."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.launch import Out, launch, op, require
from backends.emulator.ops.attention import _cache_bytes
from backends.emulator.ops.cache import chips, part
from backends.emulator.tensor import Tensor
from backends.emulator.types import (
    DRAM_MEMORY_CONFIG,
    DataType,
    Layout,
    MemoryConfig,
)


@op("transformer.paged_scaled_dot_product_attention_decode")
def paged_scaled_dot_product_attention_decode(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    page_table_tensor: Tensor,
    *,
    is_causal: bool = True,
    cur_pos_tensor: Tensor | None = None,
    scale: float | None = None,
    sliding_window_size: int | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    """[1, B, H, W] over pages [blocks, K, size, W]; idle users (position -1) get zeros."""
    require(
        cur_pos_tensor is not None, "Must have cur_pos tensor for paged attention in causal mode"
    )
    require(
        page_table_tensor.dtype is DataType.INT32, "SDPA currently only supports INT32 datatype"
    )
    require(
        page_table_tensor.shape[0] == input_tensor_q.shape[1],
        f"page_table must have batch size equal to Q, got {page_table_tensor.shape[0]} and "
        f"{input_tensor_q.shape[1]}",
    )
    return _decode(
        "transformer.paged_scaled_dot_product_attention_decode",
        [input_tensor_q, input_tensor_k, input_tensor_v, cur_pos_tensor, page_table_tensor],
        scale,
        sliding_window_size,
        memory_config,
        program_config,
        compute_kernel_config,
    )


@op("transformer.scaled_dot_product_attention_decode")
def scaled_dot_product_attention_decode(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    *,
    is_causal: bool = True,
    cur_pos_tensor: Tensor | None = None,
    scale: float | None = None,
    sliding_window_size: int | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    """[1, B, H, W] over a dense cache [B, K, T, W]."""
    require(cur_pos_tensor is not None, "only decode with a cur_pos tensor is emulated")
    return _decode(
        "transformer.scaled_dot_product_attention_decode",
        [input_tensor_q, input_tensor_k, input_tensor_v, cur_pos_tensor],
        scale,
        sliding_window_size,
        memory_config,
        program_config,
        compute_kernel_config,
    )


def _decode(
    name: str,
    inputs: list[Tensor],
    scale: float | None,
    window: int | None,
    memory_config: MemoryConfig | None,
    program_config: Any,
    compute_kernel_config: Any,
) -> Tensor:
    q, cache, _, positions = inputs[:4]
    require(
        positions.dtype is DataType.INT32, f"Expect cur_pos to be INT32, got {positions.dtype}"
    )
    memory = memory_config or DRAM_MEMORY_CONFIG
    require(not memory.is_sharded(), "Sharded output not supported for GQA")
    _, users, heads, width = q.shape
    factor = width**-0.5 if scale is None else scale

    def compute(
        x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: torch.Tensor, *tables: torch.Tensor
    ) -> torch.Tensor:
        rows_out = max(x.shape[0], k.shape[0])
        cols_out = max(x.shape[1], k.shape[1])
        out = torch.empty(rows_out, cols_out, *x.shape[2:], device=x.device)
        for rows, cols, own in chips(at, *tables):
            where = own[0].reshape(-1).long()
            keys, values = (
                _gather(part(c, rows, cols), where, own[1] if tables else None) for c in (k, v)
            )
            out[rows, cols] = _one_query(part(x, rows, cols), keys, values, where, factor, window)
        return out

    context = inputs[4].shape[1] * cache.shape[2] if len(inputs) > 4 else cache.shape[2]
    return launch(
        name,
        inputs,
        [Out(tuple(q.shape), q.dtype, Layout.TILE, memory)],
        compute,
        # positions are data: the record counts a full context, and says how long that is
        flops=4 * users * heads * context * width,
        dram_bytes=users * _cache_bytes(cache, context),
        attributes={
            "users": users,
            "context": context,
            "kv_heads": cache.shape[1],
            "block_size": cache.shape[2] if len(inputs) > 4 else None,
            "sliding_window_size": window,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


def _gather(cache: torch.Tensor, where: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
    """Keys or values [r, c, B, K, T, W] of all users, T up to the furthest position."""
    furthest = max(int(where.max()) + 1, 1)
    if table is None:
        return cache[:, :, :, :, :furthest]
    size = cache.shape[4]
    count = -(-furthest // size)
    pages = table[:, :count].long().clamp(min=0)
    rows, cols = cache.shape[:2]
    if rows * cols == 1:
        blocks = cache[0, 0].index_select(0, pages.reshape(-1))[None, None]
    else:
        blocks = cache[:, :, pages.reshape(-1)]
    blocks = blocks.unflatten(2, pages.shape)  # [r, c, B, pages, K, size, W]
    return blocks.transpose(3, 4).flatten(4, 5)


def _one_query(
    x: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    where: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """x [r, c, 1, B, H, W] over k, v [r, c, B, K, T, W] -> [r, c, 1, B, H, W]."""
    heads = k.shape[3]
    total = k.shape[4]
    q = x[:, :, 0].unflatten(3, (heads, -1)).float() * scale  # [r, c, B, K, G, W]
    seen = torch.arange(total, device=x.device) <= where[:, None]
    if window is not None:
        seen &= torch.arange(total, device=x.device) > where[:, None] - window
    hidden = ~seen
    scores = q @ k.float().mT  # [r, c, B, K, G, T]
    scores.masked_fill_(hidden[:, None, None], -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    if bool((where < 0).any()):
        weights = torch.nan_to_num(weights, nan=0.0)
    return (weights @ v.float()).flatten(3, 4).unsqueeze(2)
