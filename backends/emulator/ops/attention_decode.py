"""Attention of one query per user over its cache, paged or dense."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.launch import Out, launch, op, require
from backends.emulator.ops.attention import _cache_bytes
from backends.emulator.ops.paging import StepIndex, part, step_index
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
    require(positions.dtype is DataType.INT32, f"Expect cur_pos to be INT32, got {positions.dtype}")
    memory = memory_config or DRAM_MEMORY_CONFIG
    require(not memory.is_sharded(), "Sharded output not supported for GQA")
    _, users, heads, width = q.shape
    factor = width**-0.5 if scale is None else scale

    def compute(
        x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: torch.Tensor, *tables: torch.Tensor
    ) -> torch.Tensor:
        parts = step_index(cache.shape[2], at, *tables)
        if len(parts) == 1:
            return _attend(x, k, v, parts[0], factor, window)
        mesh = [max(x.shape[i], k.shape[i]) for i in (0, 1)]
        out = torch.empty(*mesh, *x.shape[2:], device=x.device)
        for index in parts:
            operands = [part(t, index.rows, index.cols) for t in (x, k, v)]
            out[index.rows, index.cols] = _attend(*operands, index, factor, window)
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


def _gather(cache: torch.Tensor, index: StepIndex) -> torch.Tensor:
    """Keys or values [r, c, B, K, T, W] of all users in float32, T up to the furthest position."""
    if index.table is None:
        return cache[:, :, :, :, : index.furthest].float()
    rows, cols, _, heads, size, width = cache.shape
    flat = cache.view(rows, cols, -1, heads * size * width)
    users = len(index.positions)
    pages = flat.index_select(2, index.pages).view(rows, cols, users, -1, heads, size, width)
    # one pass brings the pages of a head together and widens them
    out = torch.empty(
        (rows, cols, users, heads, pages.shape[3], size, width), device=cache.device
    ).copy_(pages.transpose(3, 4))
    return out.flatten(4, 5)


def _attend(
    x: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: StepIndex,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """x [r, c, 1, B, H, W] over caches [r, c, blocks, K, size, W] -> [r, c, 1, B, H, W]."""
    keys, values = _gather(k, index), _gather(v, index)
    heads, total = keys.shape[3], keys.shape[4]
    q = x[:, :, 0].unflatten(3, (heads, -1)).float() * scale  # [r, c, B, K, G, W]
    scores = (q @ keys.mT).add_(index.mask(total, window))  # [r, c, B, K, G, T]
    weights = torch.softmax(scores, dim=-1)
    if index.idle:
        weights = torch.nan_to_num(weights, nan=0.0)
    return (weights @ values).flatten(3, 4).unsqueeze(2)
