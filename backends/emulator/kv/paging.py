"""Where users' positions lie in a cache, for all chips at once.

Each chip of a mesh may have its own positions and pages (columns of a 2D mesh hold different
users), or share them: integers [r, c, ...] with mesh dims of 1 or the mesh's size. A cache
[r, c, blocks, K, size, W] is addressed flat, so one torch call serves every chip. Dense caches are
those whose block is the user and whose block size is the whole length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backends.emulator.kv.remember import remember_last
from backends.emulator.loops.call import call, can_run
from backends.emulator.loops.moves import mesh_steps
from backends.emulator.numerics.fidelity import cut

Mesh = tuple[int, ...]

GROUP = 1 << 20  # elements of keys read at once
_buffers: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}


def writable(cache: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """The cache itself if it is laid out plainly with room for every chip; else a copy that is."""
    rows, cols, *rest = cache.shape
    for other in others:
        shape = other.shape
        rows, cols = max(rows, shape[0]), max(cols, shape[1])
    if (rows, cols) != cache.shape[:2]:
        cache = cache.expand(rows, cols, *rest)
    return cache.contiguous()


def _first_blocks(mesh: Mesh, blocks: int, device: torch.device) -> torch.Tensor:
    """Flat number [r, c, 1] of each chip's first block."""
    rows, cols = mesh
    return torch.arange(0, rows * cols * blocks, blocks, device=device).view(rows, cols, 1)


def _entries(table: torch.Tensor, at: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """Page-table entries [r, c, B, n] of a table [r, c, B, P] at places [r, c, B, n]."""
    table = table.expand(*mesh, *table.shape[2:])
    return table.gather(3, at.expand(*mesh, *at.shape[2:])).long()


def _positions(where: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """[r, c, B] of positions in any shape per chip."""
    where = where.flatten(2).long()
    return where.expand(*mesh, -1)


@remember_last
def check_where(*where: torch.Tensor, blocks: int, size: int) -> None:
    """Refuse positions beyond their users' pages, and pages beyond the cache, once per step.

    What lies there is foreign memory. `where` is positions, and a page table where there is one.
    """
    positions, *tables = where
    if tables and can_run(positions, tables[0]):
        table, users = tables[0], tables[0].shape[2]
        assert positions[0, 0].numel() == users
        (at_r, at_c), (table_r, table_c) = mesh_steps(positions), mesh_steps(table)
        rows, cols = (max(positions.shape[axis], table.shape[axis]) for axis in (0, 1))
        if call(
            "check_pages", positions=positions, table=table, rows=rows, cols=cols, users=users,
            pages=table.shape[3], blocks=blocks, size=size, at_r=at_r, at_c=at_c, table_r=table_r,
            table_c=table_c, work=rows * cols * users,
        ):  # fmt: skip
            return
    last = tables[0].shape[3] * size - 1 if tables else size - 1
    if int(positions.max()) > last:
        raise RuntimeError(
            f"TT_FATAL: position {int(positions.max())} lies beyond the last one that a user has "
            f"room for, {last}"
        )
    if tables:
        seen = torch.arange(0, last + 1, size, device=positions.device)
        is_seen = seen <= positions.flatten(2)[..., None]  # [r, c, B, P]
        check_pages(torch.where(is_seen, tables[0], -1), blocks)


def check_pages(pages: torch.Tensor, blocks: int) -> None:
    """Refuse page numbers beyond a cache."""
    if pages.numel() and int(pages.max()) >= blocks:
        raise RuntimeError(
            f"TT_FATAL: the page table names page {int(pages.max())}, the cache has {blocks}"
        )


@remember_last
def written_rows(
    *where: torch.Tensor, mesh: Mesh, blocks: int, heads: int, size: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Flat rows (of a cache seen as [-1, W]) that take one new position of each active user.

    `where` is positions, and a page table where there is one. Also returned: which of all new
    rows (r, c, B, K flattened) are written; None if all are.
    """
    positions = _positions(where[0], mesh)
    active = positions >= 0
    place = positions.clamp(min=0)
    if len(where) > 1:
        own = _entries(where[1], (place // size)[..., None], mesh).squeeze(-1)
        active &= own >= 0
        place = place % size
    else:
        own = torch.arange(positions.shape[2], device=positions.device).expand_as(positions)
    first = (own + _first_blocks(mesh, blocks, positions.device)) * heads
    head = torch.arange(heads, device=positions.device)
    rows = (first[..., None] + head) * size + place[..., None]  # [r, c, B, K]
    if bool(active.all()):
        return rows.reshape(-1), None
    kept = active[..., None].expand(rows.shape).reshape(-1).nonzero().squeeze(-1)
    return rows[active].reshape(-1), kept


@remember_last
def flat_blocks(
    table: torch.Tensor, users: torch.Tensor, *, mesh: Mesh, blocks: int, count: int
) -> torch.Tensor:
    """Flat numbers [r, c, n, count] of the first pages of users [r, c, n]; below zero: no page."""
    if table.dtype is users.dtype is torch.int32 and can_run(table, users):
        (table_r, table_c), (users_r, users_c) = mesh_steps(table), mesh_steps(users)
        count, some = min(count, table.shape[3]), users[0, 0].numel()
        pages = torch.empty(*mesh, some, count, dtype=torch.int64)
        if call(
            "find_pages", table=table, users=users, pages=pages, chips=mesh[0] * mesh[1],
            cols=mesh[1], some=some, count=count, all=table.shape[2], width=table.shape[3],
            blocks=blocks, table_r=table_r, table_c=table_c, users_r=users_r, users_c=users_c,
            work=pages.numel(),
        ):  # fmt: skip
            return pages
    table = table[..., :count].expand(*mesh, -1, -1)
    rows = users.flatten(2).long().expand(*mesh, -1)[..., None].expand(*mesh, -1, table.shape[3])
    pages = table.gather(2, rows).long()
    check_pages(pages, blocks)
    first = _first_blocks(mesh, blocks, table.device)[..., None]
    return torch.where(pages < 0, -1, pages + first)


@dataclass(frozen=True)
class Reach:
    """What the users of one decode step see of a cache; U = users of all chips, r c B flattened."""

    rows: torch.Tensor | None  # [U, K, pages] flat (block, head) pairs; None: the cache is dense
    length: int  # positions looked at, from the first
    hidden: torch.Tensor  # [U, 1, length] added to scores: 0 where a user looks, else -inf
    idle: torch.Tensor | None  # [U, 1, 1] users that look nowhere; None if there are none


@remember_last
def reach(
    *where: torch.Tensor,
    mesh: Mesh,
    blocks: int,
    heads: int,
    size: int,
    window: int | None,
) -> Reach:
    """What users at positions (and with pages) `where` see; -1 is an idle user."""
    positions = _positions(where[0], mesh)
    length = max(int(positions.max()) + 1, 1)
    rows = None
    if len(where) > 1:
        pages = -(-length // size)
        length = pages * size
        own = where[1][..., :pages].long().clamp(min=0).expand(*mesh, -1, -1)  # [r, c, B, P]
        first = (own + _first_blocks(mesh, blocks, own.device)[..., None]) * heads
        head = torch.arange(heads, device=own.device)[:, None]
        rows = (first[..., None, :] + head).flatten(0, 2)
    keys = torch.arange(length, device=positions.device)
    at = positions.reshape(-1, 1, 1)
    unseen = keys > at
    if window is not None:
        unseen |= keys <= at - window
    idle = at < 0
    if bool(idle.any()):
        unseen &= ~idle  # an empty row of scores would give NaN; the result is cleared instead
    else:
        idle = None  # type: ignore[assignment]
    hidden = torch.zeros(unseen.shape, device=unseen.device).masked_fill_(unseen, -torch.inf)
    return Reach(rows, length, hidden, idle)


def _buffer(count: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Room for `count` elements, the same again at the next call."""
    if count > GROUP:
        return torch.empty(count, dtype=dtype, device=like.device)
    key = (dtype, like.device)
    if key not in _buffers:
        _buffers[key] = torch.empty(GROUP, dtype=dtype, device=like.device)
    return _buffers[key][:count]


def read_seen(cache: torch.Tensor, seen: Reach, users: slice, bits: int | None) -> torch.Tensor:
    """Keys or values [n K, T, W] of some users in float32."""
    size, width = cache.shape[4:]
    if seen.rows is None:
        found = cache.flatten(0, 2)[users, :, : seen.length]
    else:
        rows = seen.rows[users].view(-1)
        flat = cache.view(-1, size * width)
        room = _buffer(len(rows) * size * width, cache, cache.dtype)
        found = torch.index_select(flat, 0, rows, out=room.view(-1, size * width))
    if bits is not None:
        found = cut(found, bits)
    if found.dtype is not torch.float32:
        found = _buffer(found.numel(), cache, torch.float32).view(found.shape).copy_(found)
    return found.reshape(-1, seen.length, width)
