"""Scaled dot-product attention of prompts: within themselves, and of a chunk over its pages.

Scores, softmax and the weighted sum are computed in integers of 16 bits where the processor sums
products of those in pairs (loops/prompt.c), else in float32. Math fidelity cuts the
bits of queries, keys and values; that of the softmax weights and the kernel's running sums are not
emulated. Shapes: N prompts, H query and K key heads, S queries, T keys, W head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from backends.emulator.api.types import TILE, Layout, MemoryConfig
from backends.emulator.chip.tensor import Tensor
from backends.emulator.kv.paging import flat_blocks, writable
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.loops import native
from backends.emulator.loops.call import CONSTANTS, call
from backends.emulator.loops.moves import contiguous
from backends.emulator.numerics.fidelity import cut
from backends.emulator.rules import attention as specs
from backends.work import attention_flops, kv_bytes

_MASK_ELEMENTS = 1 << 22  # of the masks (on a GPU also the scores of a head) held at once


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    start: int = 0,
    window: int | None = None,
    causal: bool = True,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Queries [N, H, S, W] at positions start.. over keys [N, K, T, W] at positions 0...

    A mask [N or 1, H or 1, S, T] is added to the scores.
    """
    if mask is None and _in_c(q, k, v, causal=causal, window=window):
        how = {"scale": scale, "start": start, "window": window, "causal": causal}
        found = attend_prompt(q, k, v, **how)
        if found is not None:
            return found
    q, k, v = q.float(), k.float(), v.float()
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    length, total = q.shape[2], k.shape[2]
    whole = start == 0 and (not causal or length == total)
    if whole and window is None and not (q.is_cuda and length > 1024):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=True
        )
    rows = max(32, _MASK_ELEMENTS // total)
    parts = []
    for first in range(0, length, rows):
        last = min(length, first + rows)
        low = 0 if window is None or not causal else max(0, start + first - window + 1)
        high = min(total, start + last) if causal else total
        at = torch.arange(start + first, start + last, device=q.device)[:, None]
        keys = torch.arange(low, high, device=q.device)
        seen = keys <= at if causal else torch.ones_like(at + keys, dtype=torch.bool)
        if window is not None and causal:
            seen &= keys > at - window
        elif window is not None:  # half of it on either side
            seen &= (keys - at).abs() <= window // 2
        parts.append(
            F.scaled_dot_product_attention(
                q[:, :, first:last],
                k[:, :, low:high],
                v[:, :, low:high],
                attn_mask=seen,
                scale=scale,
                enable_gqa=True,
            )  # fmt: skip
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _in_c(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, window: int | None
) -> bool:
    """Whether C takes this attention, and is faster than torch."""
    library, width = native.library(), q.shape[-1]
    return (
        library is not None
        and library.sums_pairs()  # else torch is as fast, in float32
        and q.dtype is k.dtype is v.dtype is torch.bfloat16
        and q.device.type == "cpu"
        and width % TILE == 0
        and width <= CONSTANTS["MOST_WIDTH"]
        and q.shape[1] // k.shape[1] <= CONSTANTS["MOST_GROUP"]
        and (causal or window is None)
    )


def attend_prompt(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    start: int = 0,
    window: int | None = None,
    causal: bool = True,
) -> torch.Tensor | None:
    """Queries [N, H, S, W] at positions start.. over keys [N, K, T, W] at positions 0..., bfloat16.

    Softmax weights have 13 to 15 bits. None where numbers are beyond 2^60, or none at all.
    """
    q, k, v = map(contiguous, (q, k, v))
    (users, heads, length, width), (kv_heads, total) = q.shape, k.shape[1:3]
    assert k.shape == v.shape == (users, kv_heads, total, width) and heads % kv_heads == 0
    assert not causal or start + length <= total
    kv_matrices, many, rows = users * kv_heads, CONSTANTS["PROMPT_KEYS"], CONSTANTS["PROMPT_ROWS"]
    tiles, half = -(-total // many), width // 2
    keys, values = torch.empty(2, kv_matrices, tiles * many, half, dtype=torch.int32)
    units, exponents, shrinks = torch.empty(3, kv_matrices, tiles * many)
    out, given = torch.empty_like(q), {"matrices": kv_matrices, "length": total, "width": width}
    idle = torch.empty(users * heads, dtype=torch.int32)
    done = (
        call("find_zeros", x=q, out=idle, rows=users * heads, width=length * width)
        and call("arrange_keys", x=k, out=keys, units=units, groups=tiles * many // rows, half=half,
             **given)
        and call("arrange_values", x=v, out=values, exponents=exponents, shrinks=shrinks,
                 pairs=tiles * many // 2, **given)
        and call("attend_prompt", q=q, idle=idle, plain=v, keys=keys, units=units, values=values,
                 exponents=exponents, shrinks=shrinks, out=out, heads=kv_matrices,
                 group=heads // kv_heads, length=length, width=width, total=total, start=start,
                 window=window or 0, is_causal=causal, tiles=tiles, half=half, scale=scale)
    )  # fmt: skip
    return out if done else None


def _chips_with_values(v: torch.Tensor) -> int:
    """Chips with any values [chips, ..., T, W], and the first; others give zeros, and come last.

    The loop in C finds them by itself.
    """
    some = len(v)
    while some > 1 and not bool(v[some - 1, ..., :1, :].any() or v[some - 1].any()):
        some -= 1
    return some


def _flat(x: torch.Tensor, mesh: tuple[int, ...], bits: int | None) -> torch.Tensor:
    """[r, c, N, ...] of every chip as [r c N, ...], cut to significant bits."""
    return cut(x, bits).expand(*mesh, *x.shape[2:]).flatten(0, 2)


@op("transformer.scaled_dot_product_attention")
def scaled_dot_product_attention(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = True,
    scale: float | None = None,
    sliding_window_size: int | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    """[N, H, S, W] over [N, K, T, W]; a mask [1, 1, S, T] is added to the scores."""
    q, k, v = input_tensor_q, input_tensor_k, input_tensor_v
    specs.check_whole(q, k, v, is_causal=is_causal)
    specs.check_mask(q, k, attn_mask, is_causal=is_causal)
    specs.check_program(q, program_config)
    q_bits, kv_bits = specs.significant_bits(q, k, compute_kernel_config)
    factor, window = specs.scale_of(scale, q), sliding_window_size or None

    def compute(
        a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, *masks: torch.Tensor
    ) -> torch.Tensor:
        mesh = tuple(max(a.shape[i], b.shape[i], c.shape[i]) for i in (0, 1))
        a, b, c = (x.expand(*mesh, *x.shape[2:]).flatten(0, 1) for x in (a, b, c))
        chips = some = len(c)
        if masks or not _in_c(a, b, c, causal=is_causal, window=window):
            some = _chips_with_values(c)
        queries, keys, values = (
            _flat(x[None, :some], (1, some), bits)
            for x, bits in ((a, q_bits), (b, kv_bits), (c, kv_bits))
        )
        mask = masks[0][0, 0].float() if masks else None  # all chips mask alike
        out = _attend(
            queries, keys, values, scale=factor, window=window, causal=is_causal, mask=mask
        )
        out = out.unflatten(0, (some, -1))
        if some < chips:
            whole = torch.zeros(chips, *out.shape[1:], dtype=a.dtype, device=a.device)
            whole[:some] = out
            out = whole
        return out.unflatten(0, mesh)

    users, heads, length, width = q.dims
    seen = k.dims[2] / 2 if is_causal else k.dims[2]
    return launch(
        "transformer.scaled_dot_product_attention",
        [q, k, v] if attn_mask is None else [q, k, v, attn_mask],
        [Out(q.dims, q.dtype, Layout.TILE, specs.interleaved(memory_config))],
        compute,
        flops=attention_flops(users * heads * length, min(seen, window or seen), width),
        attributes={
            "is_causal": is_causal,
            "sliding_window_size": window,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
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
    """Chunks [N, H, S, W] over all pages of their users up to the chunk's end."""
    q, k, v, table = input_tensor_q, input_tensor_k, input_tensor_v, page_table_tensor
    specs.check_float32(scale)
    specs.check_operands(q, k, v)
    specs.check_start_tensor(chunk_start_idx_tensor, chunk_start_idx, table)
    specs.check_program(q, program_config)
    specs.check_chunked(q, k, table, chunk_start_idx, program_config)
    q_bits, kv_bits = specs.significant_bits(q, k, compute_kernel_config)
    factor, window = specs.scale_of(scale, q), sliding_window_size or None
    length, (blocks, _, size, _) = q.dims[2], k.dims

    def compute(
        a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, pages: torch.Tensor, *at: torch.Tensor
    ) -> torch.Tensor:
        start = int(at[0].reshape(-1)[0]) if at else chunk_start_idx
        assert start is not None and chunk_start_idx in (None, start), "which of two starts?"
        b, c = (writable(cache, a, pages) for cache in (b, c))
        mesh = tuple(b.shape[:2])
        users = torch.arange(pages.shape[2], device=pages.device).expand(*pages.shape[:3])
        own = flat_blocks(
            pages, users, mesh=mesh, blocks=blocks, count=-(-(start + length) // size)
        )
        found = [_pages(cache, own, start + length, kv_bits) for cache in (b, c)]
        out = _attend(_flat(a, mesh, q_bits), *found, scale=factor, start=start, window=window)
        return out.unflatten(0, (*mesh, -1))

    users, heads, _, width = q.dims
    start = table.dims[1] * size - length if chunk_start_idx is None else chunk_start_idx
    seen = start + length / 2
    return launch(
        "transformer.chunked_scaled_dot_product_attention",
        [q, k, v, table, *([chunk_start_idx_tensor] if chunk_start_idx_tensor else [])],
        [Out(q.dims, q.dtype, Layout.TILE, specs.interleaved(memory_config))],
        compute,
        flops=attention_flops(users * heads * length, min(seen, window or seen), width),
        dram_bytes=2 * q.buffer_bytes()
        + users * kv_bytes(k.dtype.tile_bytes, k.dims[1], start + length, width),
        attributes={
            "chunk_start_idx": chunk_start_idx,
            "block_size": size,
            "sliding_window_size": window,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


def _pages(cache: torch.Tensor, own: torch.Tensor, total: int, bits: int | None) -> torch.Tensor:
    """Keys or values [r c N, K, T, W] of pages [r, c, N, P]; no page reads as page 0."""
    heads, size, width = cache.shape[3:]
    found = cache.flatten(0, 2).index_select(0, own.clamp(min=0).flatten())
    pages = cut(found, bits).view(-1, own.shape[3], heads, size, width).transpose(1, 2)
    return pages.reshape(pages.shape[0], heads, -1, width)[:, :, :total]


@op("transformer.ring_distributed_scaled_dot_product_attention")
def ring_distributed_scaled_dot_product_attention(
    input_tensor_q: Tensor,
    input_tensor_k: Tensor,
    input_tensor_v: Tensor,
    ring_size: int,
    ring_id: int | None = None,
    *,
    scale: float | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
    page_table: Tensor | None = None,
    chunk_start_idx: int | None = None,
) -> Tensor:
    """Causal attention of a row's chips, each with its share of the queries [N, H, S, W].

    Of 2 R equal pieces chip i takes piece i and piece 2 R - 1 - i, so that all see as many keys:
    the result [N, H, S / R, W] holds the early piece, then the late one. Keys are a prompt's own,
    or pages of which the queries continue what lies before `chunk_start_idx`.
    """
    q, k, v, table = input_tensor_q, input_tensor_k, input_tensor_v, page_table
    specs.check_shared(q, k, v, table, ring_size, chunk_start_idx, program_config)
    require(ring_id is None, "every chip of a row finds its own place in the ring")
    q_bits, kv_bits = specs.significant_bits(q, k, compute_kernel_config)
    factor, (users, heads, length, width) = specs.scale_of(scale, q), q.dims
    start, paged = chunk_start_idx or 0, table is not None

    def compute(
        a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, *pages: torch.Tensor
    ) -> torch.Tensor:
        if paged:
            b, c = (writable(cache, a, pages[0]) for cache in (b, c))
            blocks, size = b.shape[2], b.shape[4]
            at = torch.arange(users, device=a.device).expand(*pages[0].shape[:3])
            count = -(-(start + length) // size)
            own = flat_blocks(pages[0], at, mesh=tuple(b.shape[:2]), blocks=blocks, count=count)
            mesh = tuple(b.shape[:2])
            read = [_pages(x, own, start + length, kv_bits) for x in (b, c)]
            b, c = (x.unflatten(0, (*mesh, -1)) for x in read)
        if not paged:
            b, c = cut(b, kv_bits), cut(c, kv_bits)
        return _pieces(cut(a, q_bits), b, c, ring_size, scale=factor, start=start)

    own = (users, heads, length // ring_size, width)
    keys = users * kv_bytes(k.dtype.tile_bytes, k.dims[1], start + length, width)
    return launch(
        "transformer.ring_distributed_scaled_dot_product_attention",
        [q, k, v, *([table] if table else [])],
        [Out(own, q.dtype, Layout.TILE, specs.interleaved(memory_config))],
        compute,
        flops=attention_flops(users * heads * length, start + length / 2, width) // ring_size,
        dram_bytes=2 * q.buffer_bytes() // ring_size + keys,
        attributes={
            "ring_size": ring_size,
            "chunk_start_idx": chunk_start_idx,
            "block_size": k.dims[2] if paged else None,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


def _pieces(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ways: int, *, scale: float, start: int
) -> torch.Tensor:
    """Every chip's early and late piece of queries [r, c, N, H, S, W], which start at `start`."""
    rows = max(x.shape[0] for x in (q, k, v))
    q, k, v = (x.expand(rows, ways, *x.shape[2:]) for x in (q, k, v))
    *outer, length, width = q.shape
    piece = length // (2 * ways)
    out = q.new_empty(*outer, 2 * piece, width, dtype=torch.float32)
    for chip in range(ways):
        for place, index in enumerate((chip, 2 * ways - 1 - chip)):
            first, last = index * piece, (index + 1) * piece
            queries = q[:, chip, :, :, first:last].flatten(0, 1)
            seen = (x[:, chip, :, :, : start + last].flatten(0, 1) for x in (k, v))
            found = _attend(queries, *seen, scale=scale, start=start + first)
            to = slice(place * piece, (place + 1) * piece)
            out[:, chip, :, :, to] = found.unflatten(0, (rows, -1))
    return out
