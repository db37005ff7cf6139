"""Where a decode step reads and writes its cache: worked out once, used by every layer.

Positions and page tables are tensors that change between steps, in place or by replacement, while
all layers of a step see the same ones. An index therefore remembers the exact tensors (and their
versions) it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch


def chips(*tensors: torch.Tensor) -> Iterator[tuple[slice, slice, list[torch.Tensor]]]:
    """Parts of the mesh whose integers (positions, pages) agree, and those integers.

    Chips of a line share them; on a 2D mesh each column has its own users.
    """
    rows = max(tensor.shape[0] for tensor in tensors)
    cols = max(tensor.shape[1] for tensor in tensors)
    for r in range(rows):
        for c in range(cols):
            own = [t[min(r, t.shape[0] - 1), min(c, t.shape[1] - 1)] for t in tensors]
            yield (
                slice(None) if rows == 1 else slice(r, r + 1),
                slice(None) if cols == 1 else slice(c, c + 1),
                own,
            )


def part(x: torch.Tensor, rows: slice, cols: slice) -> torch.Tensor:
    """The chips' part of mesh-batched data, replicated data being everybody's."""
    x = x if x.shape[0] == 1 else x[rows]
    return x if x.shape[1] == 1 else x[:, cols]


@dataclass
class StepIndex:
    """One part of the mesh in one step; `size` is a page's positions (a row's, when dense)."""

    rows: slice
    cols: slice
    positions: torch.Tensor  # int64 [B], -1 when idle
    table: torch.Tensor | None  # int64 [B, pages]
    size: int
    users: torch.Tensor | None = None  # the users that write; None: all of them
    blocks: torch.Tensor = field(init=False)
    offsets: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        users = (self.positions >= 0).nonzero().squeeze(-1)
        at = self.positions[users]
        if self.table is None:
            self.blocks, self.offsets = users, at
        else:
            self.blocks = self.table[users, at // self.size]
            self.offsets = at % self.size
            kept = self.blocks >= 0
            users, self.blocks, self.offsets = users[kept], self.blocks[kept], self.offsets[kept]
        self.idle = bool((self.positions < 0).any())
        self.furthest = max(int(self.positions.max()) + 1, 1)
        self.users = users if len(users) < len(self.positions) else None
        self._kept: dict[tuple[str, int | None], torch.Tensor] = {}

    def cache_rows(self, heads: int) -> torch.Tensor:
        """Rows of the cache seen as [blocks * heads * size, W], for every user and head."""
        key = ("rows", heads)
        if key not in self._kept:
            heads_at = torch.arange(heads, device=self.blocks.device)
            rows = (self.blocks[:, None] * heads + heads_at) * self.size + self.offsets[:, None]
            self._kept[key] = rows.reshape(-1)
        return self._kept[key]

    @property
    def pages(self) -> torch.Tensor:
        """Pages of every user up to the furthest position, [B * pages]."""
        assert self.table is not None
        key = ("pages", None)
        if key not in self._kept:
            count = -(-self.furthest // self.size)
            self._kept[key] = self.table[:, :count].clamp(min=0).reshape(-1)
        return self._kept[key]

    def mask(self, total: int, window: int | None) -> torch.Tensor:
        """0 where a user's query sees a position, -inf elsewhere, [B, 1, 1, total]."""
        key = (f"mask {total}", window)
        if key not in self._kept:
            places = torch.arange(total, device=self.positions.device)
            seen = places <= self.positions[:, None]
            if window is not None:
                seen &= places > self.positions[:, None] - window
            mask = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._kept[key] = mask[:, None, None]
        return self._kept[key]


_last: dict[str, object] = {}


def step_index(size: int, positions: torch.Tensor, *tables: torch.Tensor) -> list[StepIndex]:
    """The parts of the mesh for these positions and page tables [r, c, ...]."""
    sources = (positions, *tables)
    made_from = (size, *((id(t), t._version) for t in sources))
    if _last.get("made_from") == made_from:
        return _last["parts"]  # type: ignore[return-value]
    parts = [
        StepIndex(rows, cols, own[0].reshape(-1).long(), own[1].long() if tables else None, size)
        for rows, cols, own in chips(*sources)
    ]
    # holding the sources keeps their ids from being reused
    _last.update(made_from=made_from, parts=parts, sources=sources)
    return parts
