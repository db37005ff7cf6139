"""Scaled dot-product attention: causal, of a chunk over its cached prefix, and of one query.

Scores, softmax and the weighted sum are computed in float32 on the operands' stored values; the
multiplier's fidelity and the kernel's running softmax are not emulated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from backends.emulator.launch import Out, launch, op, require
from backends.emulator.ops.paging import chips
from backends.emulator.tensor import Tensor
from backends.emulator.types import DRAM_MEMORY_CONFIG, DataType, Layout, MemoryConfig

QUERY_BLOCK = 1024  # rows whose masked scores are held at once


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, start: int, window: int | None
) -> torch.Tensor:
    """Queries [..., H, S, W] at positions start.. over keys [..., K, T, W] at positions 0..."""
    # chips may hold different caches where they hold the same queries: users lie on columns
    chips_shape = torch.broadcast_shapes(q.shape[:2], k.shape[:2])
    q, k, v = (x.expand(*chips_shape, *x.shape[2:]) for x in (q, k, v))
    mesh = q.shape[:-3]
    q, k, v = (x.reshape(-1, *x.shape[-3:]).float() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    length, total = q.shape[2], k.shape[2]
    if start == 0 and length == total and (window is None or window >= length):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.reshape(*mesh, *out.shape[1:])
    keys = torch.arange(total, device=q.device)
    parts = []
    for first in range(0, length, QUERY_BLOCK):
        rows = q[:, :, first : first + QUERY_BLOCK]
        at = torch.arange(start + first, start + first + rows.shape[2], device=q.device)[:, None]
        seen = keys <= at
        if window is not None:
            seen &= keys > at - window
        last = min(total, start + first + rows.shape[2])
        parts.append(
            F.scaled_dot_product_attention(
                rows, k[:, :, :last], v[:, :, :last], attn_mask=seen[:, :last], scale=scale
            )
        )
    out = torch.cat(parts, dim=2)
    return out.reshape(*mesh, *out.shape[1:])


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _out(q: Tensor, memory_config: MemoryConfig | None) -> Out:
    return Out(tuple(q.shape), q.dtype, Layout.TILE, memory_config or DRAM_MEMORY_CONFIG)


@op("transformer.scaled_dot_product_attention")
def scaled_dot_product_attention(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    sliding_window_size: int | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    """[N, H, S, W] over [N, K, S, W], causal."""
    q, k = input_tensor_q, input_tensor_k
    require(is_causal, "only causal attention is emulated")
    require(
        q.shape[2] == k.shape[2],
        f"Causal SDPA requires Q and K to have the same sequence length. Got Q: {q.shape[2]}, "
        f"K: {k.shape[2]}",
    )
    _check_chunks(program_config)
    users, heads, length, width = q.shape
    return launch(
        "transformer.scaled_dot_product_attention",
        [q, k, input_tensor_v],
        [_out(q, memory_config)],
        lambda a, b, c: _attend(a, b, c, _scale(scale, q), 0, sliding_window_size),
        flops=2 * users * heads * length * length * width,  # half of the square is masked
        attributes={
            "sliding_window_size": sliding_window_size,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


def _check_chunks(config: Any, start: int | None = None) -> None:
    if config is None:
        return
    size = config.q_chunk_size
    require(
        size > 0 and size % 32 == 0,
        f"q_chunk_size must be a positive multiple of TILE_SIZE. Got q_chunk_size: {size}, "
        "TILE_SIZE: 32",
    )
    require(
        start is None or start % size == 0,
        f"chunk_start_idx must be a multiple of q_chunk_size. Got chunk_start_idx: {start}, "
        f"q_chunk_size: {size}",
    )


@op("transformer.chunked_scaled_dot_product_attention")
def chunked_scaled_dot_product_attention(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    page_table_tensor: Tensor,
    chunk_start_idx: int | None = None,
    *,
    chunk_start_idx_tensor: Tensor | None = None,
    scale: float | None = None,
    sliding_window_size: int | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    """A chunk [1, H, S, W] over all pages of its user up to the chunk's end."""
    q, table = input_tensor_q, page_table_tensor
    require(table.dtype is DataType.INT32, "Page table must be int32")
    require(
        table.shape[0] == q.shape[0],
        "Page table batch size must match input batch size. "
        f"Got Page table: {table.shape[0]}, Input: {q.shape[0]}",
    )
    _check_chunks(program_config, chunk_start_idx)
    size, length = input_tensor_k.shape[2], q.shape[2]
    held = table.shape[1] * size
    require(
        chunk_start_idx is None or held >= length + chunk_start_idx,
        "K's sequence length must be >= Q's sequence length + chunk_start_idx. "
        f"Got K: {held}, Q: {length}, chunk_start_idx: {chunk_start_idx}",
    )
    inputs = [q, input_tensor_k, input_tensor_v, table]
    if chunk_start_idx_tensor is not None:
        inputs.append(chunk_start_idx_tensor)

    def compute(
        x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pages: torch.Tensor, *at: torch.Tensor
    ) -> torch.Tensor:
        start = int(at[0].reshape(-1)[0]) if at else chunk_start_idx
        count = -(-(start + length) // size)
        _, _, (own,) = next(chips(pages))
        wanted = own[0, :count].long().clamp(min=0)
        keys, values = (c[:, :, wanted].movedim(2, 3).flatten(3, 4)[:, :, None] for c in (k, v))
        total = start + length
        return _attend(
            x, keys[..., :total, :], values[..., :total, :], _scale(scale, q), start,
            sliding_window_size,
        )  # fmt: skip

    users, heads, _, width = q.shape
    start = chunk_start_idx if chunk_start_idx is not None else held - length
    kv_bytes = _cache_bytes(input_tensor_k, start + length)
    return launch(
        "transformer.chunked_scaled_dot_product_attention",
        inputs,
        [_out(q, memory_config)],
        compute,
        flops=4 * users * heads * length * (start + length // 2) * width,
        dram_bytes=2 * q.buffer_bytes() + kv_bytes,
        attributes={
            "chunk_start_idx": chunk_start_idx,
            "sliding_window_size": sliding_window_size,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


def _cache_bytes(cache: Tensor, positions: int) -> int:
    """Bytes of keys and values of one user at so many positions."""
    tiles = math.ceil(positions / 32) * cache.shape[1] * math.ceil(cache.shape[3] / 32)
    return 2 * tiles * cache.dtype.tile_bytes
