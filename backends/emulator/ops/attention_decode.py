"""Attention of one query per user over its cache, paged or dense, for all chips at once.

Memory bound: pages are read where they lie, in groups of users that fit the processor's caches,
into buffers that are used again and again (fresh ones would cost page faults). Shapes: U users of
all chips, H query and K key heads, G = H / K, T keys, W head width.
"""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.api.types import BufferType, MemoryConfig
from backends.emulator.chip.tensor import Tensor
from backends.emulator.kv import alike
from backends.emulator.kv.paging import GROUP, Reach, check_where, reach, read_seen, writable
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.loops.call import CONSTANTS, LANES, call, can_run, team_size
from backends.emulator.loops.moves import contiguous, mesh_steps
from backends.emulator.numerics.fidelity import cut
from backends.emulator.numerics.formats import seen_mask
from backends.emulator.rules import attention as specs
from backends.work import attention_flops, kv_bytes


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
    require(is_causal, "only causal decode is emulated")
    require(
        cur_pos_tensor is not None, "Must have cur_pos tensor for paged attention in causal mode"
    )
    assert cur_pos_tensor is not None
    return _decode(
        "transformer.paged_scaled_dot_product_attention_decode",
        [input_tensor_q, input_tensor_k, input_tensor_v, cur_pos_tensor, page_table_tensor],
        specs.scale_of(scale, input_tensor_q),
        sliding_window_size or None,
        memory_config,
        {"program_config": program_config, "compute_kernel_config": compute_kernel_config},
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
    require(
        is_causal and cur_pos_tensor is not None,
        "only causal decode with a cur_pos tensor is emulated",
    )
    assert cur_pos_tensor is not None
    return _decode(
        "transformer.scaled_dot_product_attention_decode",
        [input_tensor_q, input_tensor_k, input_tensor_v, cur_pos_tensor],
        specs.scale_of(scale, input_tensor_q),
        sliding_window_size or None,
        memory_config,
        {"program_config": program_config, "compute_kernel_config": compute_kernel_config},
    )


def _decode(
    name: str,
    inputs: list[Tensor],
    scale: float,
    window: int | None,
    memory_config: MemoryConfig | None,
    configs: dict[str, Any],
) -> Tensor:
    q, cache, _, positions, *tables = inputs
    table = tables[0] if tables else None
    memory = specs.interleaved(memory_config)
    specs.check_decode(q, cache, positions, table, memory)
    specs.check_decode_program(q, configs["program_config"])
    q_bits, kv_bits = specs.significant_bits(q, cache, configs["compute_kernel_config"])
    _, users, heads, width = q.dims
    blocks, kv_heads, size, _ = cache.dims

    def compute(
        x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *where: torch.Tensor
    ) -> torch.Tensor:
        k, v = writable(k, x, *where), writable(v, x, *where)
        mesh = tuple(k.shape[:2])
        check_where(*where, blocks=blocks, size=size)
        if _in_c(x, k, where):
            chips = alike.of((k, v), where)
            if chips.are_columns_alike and all(each.shape[1] == 1 for each in (x, *where)):
                k, v, chips = k[:, :1], v[:, :1], chips.of_first_column
            return attend(x, (k, v), where, chips, (scale, window, q_bits or 8, kv_bits or 8))
        seen = reach(*where, mesh=mesh, blocks=blocks, heads=kv_heads, size=size, window=window)
        x = x.expand(*mesh, *x.shape[2:]).contiguous()
        queries = (cut(x, q_bits) if q_bits else x).float() * scale
        queries = queries.view(-1, heads // kv_heads, width)
        return _in_calls(queries, k, v, seen, kv_bits).view(x.shape)

    context = table.dims[1] * size if table is not None else size
    cached = users * kv_bytes(cache.dtype.tile_bytes, kv_heads, context, width)
    outer = q.buffer_bytes() if q.in_dram() else 0
    result = q.buffer_bytes() if memory.buffer_type is BufferType.DRAM else 0
    return launch(
        name,
        inputs,
        [Out(q.dims, q.dtype, q.layout, memory)],
        compute,
        # positions are data: the record counts a full context, and says how long that is
        flops=attention_flops(users * heads, context, width),
        dram_bytes=cached + outer + result,
        cached_bytes=cached,
        attributes={
            "users": users,
            "context": context,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": width,
            "block_size": size if table is not None else None,
            "page_blocks": table.dims[1] if table is not None else None,
            "sliding_window_size": window,
            **configs,
        },
    )


def _in_c(q: torch.Tensor, k: torch.Tensor, where: tuple[torch.Tensor, ...]) -> bool:
    """Whether the C loops take these operands: caches in pages, heads of whole vectors."""
    width = q.shape[-1]
    return (
        len(where) > 1
        and width % LANES == 0
        and width <= CONSTANTS["MOST_WIDTH"]
        and q.dtype is k.dtype is torch.bfloat16
        and can_run(k, *where)
    )


def _in_calls(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: Reach, bits: int | None
) -> torch.Tensor:
    """Queries [U K, G, W], scaled, over caches [r, c, blocks, K, size, W], by torch calls."""
    heads = k.shape[3]
    users = q.shape[0] // heads
    step = max(1, GROUP // (heads * seen.length * q.shape[2]))
    groups = [slice(first, first + step) for first in range(0, users, step)]

    def product(x: torch.Tensor, cache: torch.Tensor, *, turned: bool) -> torch.Tensor:
        if len(groups) == 1:
            found = read_seen(cache, seen, groups[0], bits)
            return torch.bmm(x, found.mT if turned else found)
        out = x.new_empty(*x.shape[:2], seen.length if turned else q.shape[2])
        for group in groups:
            own = slice(group.start * heads, group.stop * heads)
            found = read_seen(cache, seen, group, bits)
            torch.bmm(x[own], found.mT if turned else found, out=out[own])
        return out

    scores = product(q, k, turned=True)
    scores.view(users, -1, seen.length).add_(seen.hidden)
    out = product(torch.softmax(scores, dim=-1), v, turned=False)
    if seen.idle is not None:
        out.view(users, heads, -1).masked_fill_(seen.idle, 0)
    return out


def attend(
    q: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    where: tuple[torch.Tensor, ...],
    chips: alike.Alike,
    how: tuple[float, int | None, int, int],
) -> torch.Tensor:
    """Decode attention of queries [r, c, 1, B, H, W] over keys and values [..., size, W], bfloat16.

    `where` is positions and the page table, checked; `chips` says whose users see the same. Caches
    are whole, or the first column of what is. `how`
    is the scale, the window, and how many bits count of queries, and of keys and values.
    """
    (positions, table), (scale, window, q_bits, kv_bits) = where, how
    q, (rows, cols, _, heads, size, width) = contiguous(q), caches[0].shape
    apart = caches[0].stride(1 if cols > 1 else 0)
    assert all(c.shape == caches[0].shape and c.stride() == caches[0].stride() for c in caches)
    assert caches[0][0, 0].is_contiguous()
    users, count, threads = table.shape[2], table.shape[3], team_size()
    out = q.new_empty(rows, cols, *q.shape[2:])
    room = q.new_empty(threads, CONSTANTS["MOST_QUERIES"], count * size, dtype=torch.float32)
    (q_r, q_c), (at_r, at_c), (table_r, table_c) = map(mesh_steps, (q, positions, table))
    group = q.shape[4] // heads
    call(
        "attend", q=q, keys=caches[0], values=caches[1], positions=positions, table=table,
        chain=chips.chain, out=out, room=room, rows=rows, cols=cols, users=users, heads=heads,
        group=group, width=width, pages=count, apart=apart, size=size, window=window or 0,
        q_seen=seen_mask(q_bits), seen=seen_mask(kv_bits), threads=threads, q_r=q_r, q_c=q_c,
        at_r=at_r, at_c=at_c, table_r=table_r, table_c=table_c, scale=scale,
        work=out.numel() * count,
    )  # fmt: skip
    return out
