"""Writing keys and values into caches, in place: pages behind a page table, or dense rows.

A user at position -1 is skipped as the kernel skips it, and so is a page-table entry of -1.
Shapes: [r, c] mesh, B users, K key heads, W head width, S positions, P pages of `size` positions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from backends.emulator.api.types import TILE, DataType
from backends.emulator.chip.tensor import Tensor
from backends.emulator.kv import alike
from backends.emulator.kv.paging import check_where, flat_blocks, writable, written_rows
from backends.emulator.launch import launch, op
from backends.emulator.loops.call import call, can_run
from backends.emulator.loops.moves import contiguous, mesh_steps, padded
from backends.emulator.numerics.formats import BLOCK, MANTISSA_BITS, finish
from backends.emulator.rules.cache import check_apart, check_dense_fill, check_fill, check_update
from backends.work import update_bytes


@op("experimental.paged_update_cache")
def paged_update_cache(
    cache_tensor: Tensor,
    input_tensor: Tensor,
    *,
    update_idxs: Any = (),
    update_idxs_tensor: Tensor | None = None,
    share_cache: bool | None = None,
    page_table: Tensor | None = None,
    batch_offset: int = 0,
    compute_kernel_config: Any = None,
) -> Tensor:
    """One position [1, B, K, W] of every user, rounded to the cache's format."""
    x = input_tensor
    check_update(cache_tensor, x, update_idxs_tensor, page_table)
    assert update_idxs_tensor is not None
    inputs = [cache_tensor, x, update_idxs_tensor]
    if page_table is not None:
        inputs.append(page_table)
    dims, dtype = cache_tensor.dims, cache_tensor.dtype  # a trace keeps no operand
    _, heads, size, width = dims

    def compute(old: torch.Tensor, data: torch.Tensor, *where: torch.Tensor) -> torch.Tensor | None:
        cache = _updated(old, data, where, dims, dtype)
        return None if cache is old else cache

    moved = update_bytes(dtype.tile_bytes, x.dims[1], heads, width)
    return launch(
        "experimental.paged_update_cache",
        inputs,
        [],
        compute,
        into=cache_tensor,
        exact=True,
        dram_bytes=moved,
        cached_bytes=moved,
        attributes={"users": x.dims[1], "block_size": size if page_table is not None else None},
    )


@op("experimental.paged_fused_update_cache")
def paged_fused_update_cache(
    cache_tensor1: Tensor,
    input_tensor1: Tensor,
    cache_tensor2: Tensor,
    input_tensor2: Tensor,
    *,
    update_idxs: Any = (),
    update_idxs_tensor: Tensor | None = None,
    share_cache: bool | None = None,
    page_table: Tensor | None = None,
    batch_offset: int = 0,
    compute_kernel_config: Any = None,
) -> tuple[Tensor, Tensor]:
    """The same for keys and values at a time, which lie on cores of their own."""
    pairs = ((cache_tensor1, input_tensor1), (cache_tensor2, input_tensor2))
    for cache, x in pairs:
        check_update(cache, x, update_idxs_tensor, page_table)
    check_apart(input_tensor1, input_tensor2)
    assert update_idxs_tensor is not None
    inputs = [*pairs[0], *pairs[1], update_idxs_tensor]
    if page_table is not None:
        inputs.append(page_table)

    dims, formats = cache_tensor1.dims, (cache_tensor1.dtype, cache_tensor2.dtype)

    def compute(
        keys: torch.Tensor, k: torch.Tensor, values: torch.Tensor, v: torch.Tensor,
        *where: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        return (
            _updated(keys, k, where, dims, formats[0]),
            _updated(values, v, where, dims, formats[1]),
        )

    _, heads, size, width = dims
    users = input_tensor1.dims[1]
    moved = 2 * update_bytes(cache_tensor1.dtype.tile_bytes, users, heads, width)
    return launch(
        "experimental.paged_fused_update_cache",
        inputs,
        [],
        compute,
        into=(cache_tensor1, cache_tensor2),
        exact=True,
        dram_bytes=moved,
        cached_bytes=moved,
        attributes={
            "users": users,
            "block_size": size if page_table is not None else None,
        },
    )


def _updated(
    old: torch.Tensor, data: torch.Tensor, where: tuple[torch.Tensor, ...],
    dims: tuple[int, ...], dtype: DataType,
) -> torch.Tensor:  # fmt: skip
    """The cache with one position of every user; `old` itself where it has room for all chips."""
    blocks, heads, size, width = dims
    cache, data = writable(old, data, *where), contiguous(data)  # [r, c, 1, B, K or more, W]
    alike.note_write(cache, data, *where)
    check_where(*where, blocks=blocks, size=size)
    is_plain = cache.dtype is data.dtype is torch.bfloat16 and width % BLOCK == 0
    if is_plain and can_run(cache, *where):
        put_positions(cache, data, where, MANTISSA_BITS.get(dtype, 0))
        return cache
    mesh = tuple(cache.shape[:2])
    rows, kept = written_rows(*where, mesh=mesh, blocks=blocks, heads=heads, size=size)
    new = data[:, :, :, :, :heads].expand(*mesh, *data.shape[2:4], heads, width)
    new = new.reshape(-1, width)
    new = finish(new if kept is None else new[kept], dtype)
    cache.view(-1, width).index_copy_(0, rows, new)
    return cache


@op("experimental.paged_fill_cache")
def paged_fill_cache(
    cache_tensor: Tensor,
    input_tensor: Tensor,
    page_table: Tensor,
    *,
    batch_idx_tensor: Tensor | None = None,
    batch_idx: int = 0,
    compute_kernel_config: Any = None,
) -> Tensor:
    """Whole prompts [N, K, S, W], page by page."""
    x = input_tensor
    check_fill(cache_tensor, x, page_table, batch_idx_tensor, batch_idx)
    blocks, _, size, _ = cache_tensor.dims
    length = x.dims[2]
    rows = -(-length // TILE) * TILE  # whole tiles are written
    inputs = [cache_tensor, x, page_table]
    if batch_idx_tensor is not None:
        inputs.append(batch_idx_tensor)

    def compute(
        old: torch.Tensor, data: torch.Tensor, table: torch.Tensor, *places: torch.Tensor
    ) -> torch.Tensor | None:
        cache, data = writable(old, table, *places), contiguous(data)
        alike.note_write(cache, data, table, *places)
        mesh = tuple(cache.shape[:2])
        own = places[0] if places else _user(batch_idx, table.device)
        whole, rest = divmod(rows, size)
        pages = flat_blocks(table, own, mesh=mesh, blocks=blocks, count=whole + bool(rest))
        target = cache.view(-1, *cache.shape[3:])  # [blocks of all chips, K, size, W]
        data = padded(data, (*data.shape[:4], rows, data.shape[5]))
        if not rest and target.dtype is data.dtype and can_run(target, pages):
            put_pages(target, pages, data)
            return None if cache is old else cache
        data = data.expand(*mesh, *data.shape[2:])
        full = data[..., : whole * size, :].unflatten(4, (whole, size))
        _write(target, pages[..., :whole], full.transpose(3, 4).flatten(0, 3))
        if rest:
            _write(target[:, :, :rest], pages[..., whole], data[..., -rest:, :].flatten(0, 2))
        return None if cache is old else cache

    return launch(
        "experimental.paged_fill_cache",
        inputs,
        [],
        compute,
        into=cache_tensor,
        exact=True,
        dram_bytes=2 * x.buffer_bytes(),
        attributes={"block_size": size},
    )


def _write(target: torch.Tensor, pages: torch.Tensor, new: torch.Tensor) -> None:
    """`new` [n, K, rows, W] into the pages, those below zero left out."""
    pages = pages.reshape(-1)
    kept = pages >= 0
    if not bool(kept.all()):
        pages, new = pages[kept], new[kept]
    target.index_copy_(0, pages, new)


@op("fill_cache")
def fill_cache(cache_tensor: Tensor, input_tensor: Tensor, batch_idx: int) -> Tensor:
    """One whole prompt [1, K, S, W] into a dense cache's row."""
    cache, x = cache_tensor, input_tensor
    check_dense_fill(cache, x, batch_idx)
    length = x.dims[2]

    def compute(old: torch.Tensor, data: torch.Tensor) -> torch.Tensor | None:
        made = writable(old, data)
        alike.note_write(made, data)
        made[:, :, batch_idx, :, :length] = data[:, :, 0]
        return None if made is old else made

    return launch(
        "fill_cache",
        [cache, x],
        [],
        compute,
        into=cache,
        exact=True,
        dram_bytes=2 * x.buffer_bytes(),
    )


def put_positions(
    cache: torch.Tensor, x: torch.Tensor, where: tuple[torch.Tensor, ...], mantissa_bits: int
) -> None:
    """One row of x [r, c, 1, B, K or more, W] per user and head to its place in a cache, bfloat16.

    `where` is positions, checked, and a page table where there is one; rows are rounded to blocks
    of `mantissa_bits`; 0: they are stored as they are. Chips known to be empty after this are.
    """
    known = alike.of((cache,), ())
    positions, table = where[0], where[1] if len(where) > 1 else None
    rows, cols, blocks, heads, size, width = cache.shape
    (x_r, x_c), (at_r, at_c) = mesh_steps(x), mesh_steps(positions)
    table_r, table_c = (0, 0) if table is None else mesh_steps(table)
    users, pages = positions[0, 0].numel(), 1 if table is None else table.shape[3]
    assert x.shape[3] == users and x.shape[4] >= heads and x.shape[5] == width
    call(
        "put_positions", cache=cache, x=x, positions=positions, table=table,
        chain=known.chain if known.empty else None, rows=rows, cols=cols,
        users=users, heads=heads, width=width, pages=pages, blocks=blocks, size=size,
        mantissa_bits=mantissa_bits, x_r=x_r, x_c=x_c, x_user=x.stride(3), at_r=at_r, at_c=at_c,
        table_r=table_r, table_c=table_c, work=rows * cols * users * heads * width,
    )  # fmt: skip


def put_pages(table: torch.Tensor, pages: torch.Tensor, x: torch.Tensor) -> None:
    """Prompts x [r, c, N, K, S, W], r and c the mesh's or 1, into a table [*, K, size, W].

    `pages` [R, C, N, S / size] says where each chip wants them; below zero: nowhere.
    """
    rows, cols, users, count = pages.shape
    heads, sources = table.shape[1], _sources(tuple(x.shape[:2]), (rows, cols))
    call(
        "put_pages", table=table, pages=pages, sources=sources, x=x, total=len(table),
        chips=rows * cols, users=users, heads=heads, count=count, bytes=table[0, 0].nbytes,
        work=x.numel(),
    )  # fmt: skip


@lru_cache
def _sources(held: tuple[int, ...], mesh: tuple[int, ...]) -> torch.Tensor:
    """For every chip of a mesh its place in data [r, c, ...], each 1 or the mesh's."""
    places = torch.arange(held[0] * held[1]).view(held)
    return places.expand(mesh).flatten().contiguous()  # flat, what is one for all still repeats it


@lru_cache
def _user(number: int, device: torch.device) -> torch.Tensor:
    """[1, 1, 1], the same tensor each time."""
    return torch.full((1, 1, 1), number, dtype=torch.int32, device=device)
