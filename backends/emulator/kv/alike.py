"""Which chips' caches hold the same, so that decode attention reads those once.

Where a model has fewer key/value heads than the mesh has chips, several chips keep the same head.
Nothing says so but the values: a cache begins as the same zeros everywhere, and chips stay alike as
long as each write puts the same rows in the same places. What is known hangs on the cache's torch
tensor; of one without it nothing is known.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property, lru_cache

import torch

from backends.emulator.loops.call import call, can_run

Mesh = tuple[int, ...]  # rows and columns


class Alike:
    """For every chip of a mesh the first one whose cache is the same."""

    def __init__(self, mesh: Mesh, first: tuple[int, ...]) -> None:
        self.mesh, self.first = mesh, first
        self.is_shared = first != tuple(range(len(first)))

    @cached_property
    def chain(self) -> torch.Tensor:
        """[2, chips]: the first chip of each one's group, and the next one in it or -1."""
        after = [-1] * len(self.first)
        last: dict[int, int] = {}
        for chip, leader in enumerate(self.first):
            if leader in last:
                after[last[leader]] = chip
            last[leader] = chip
        return torch.tensor([self.first, after])

    def within(self, keys: Sequence[Hashable]) -> Alike:
        """Groups of those chips that are in one group now and have equal keys."""
        known: dict[Hashable, int] = {}
        pairs = zip(self.first, keys, strict=True)
        return _alike(self.mesh, tuple(known.setdefault(p, at) for at, p in enumerate(pairs)))

    @lru_cache  # noqa: B019 (few exist, and all are kept by _alike)
    def pairs(self, mesh: Mesh) -> torch.Tensor | None:
        """[n, 2] places of data [r, c, ...] (each 1 or the mesh's) that must hold the same."""
        at = self.places(mesh)
        found = {(at[leader], at[chip]) for chip, leader in enumerate(self.first)}
        own = sorted(pair for pair in found if pair[0] != pair[1])
        return torch.tensor(own) if own else None

    def places(self, mesh: Mesh) -> list[int]:
        """For every chip its place in data [r, c, ...], each 1 or the mesh's."""
        rows, cols = self.mesh
        return [
            (r if mesh[0] > 1 else 0) * mesh[1] + (c if mesh[1] > 1 else 0)
            for r in range(rows)
            for c in range(cols)
        ]


@lru_cache
def _alike(mesh: Mesh, first: tuple[int, ...]) -> Alike:
    return Alike(mesh, first)


@lru_cache
def _together(known: tuple[Alike, ...], where: tuple[Mesh, ...]) -> Alike:
    """Chips that are alike in all of `known`, and share all data of meshes `where`."""
    found, *others = known
    for other in others:
        found = found.within(other.first)
    for mesh in where:
        found = found.within(found.places(mesh))
    return found


def of(caches: Sequence[torch.Tensor], where: Sequence[torch.Tensor]) -> Alike:
    """Chips whose users find the same in caches [r, c, ...] at `where` [r, c, ...] they look."""
    known = tuple(getattr(cache, "alike", None) for cache in caches)
    if None in known:
        mesh = caches[0].shape[:2]
        return _alike(mesh, tuple(range(mesh[0] * mesh[1])))
    return _together(known, tuple(each.shape[:2] for each in where))


def note_same(cache: torch.Tensor) -> None:
    """All chips of a cache [r, c, ...] hold the same; only the processor's loops make use of it."""
    mesh = cache.shape[:2]
    if cache.device.type == "cpu":
        cache.alike = _alike(mesh, (0,) * (mesh[0] * mesh[1]))  # type: ignore[attr-defined]


def note_write(cache: torch.Tensor, rows: torch.Tensor, *where: torch.Tensor) -> None:
    """Each chip wrote its `rows` to its `where`: data [r, c, ...], each 1 or the mesh's."""
    known: Alike | None = getattr(cache, "alike", None)
    if known is None or not known.is_shared:
        return
    known = _together((known,), tuple(each.shape[:2] for each in where))
    mesh = rows.shape[:2]
    pairs = known.pairs(mesh)
    if pairs is not None and not all_equal(rows.reshape(mesh[0] * mesh[1], -1), pairs):
        values = [
            row.contiguous().view(torch.uint8).numpy().tobytes() for row in rows.flatten(0, 1)
        ]
        known = known.within([values[place] for place in known.places(mesh)])
    cache.alike = known  # type: ignore[attr-defined]


def all_equal(rows: torch.Tensor, pairs: torch.Tensor) -> bool:
    """Whether those of rows [*, n] that `pairs` [count, 2] names are the same, to the bit."""
    if not can_run(rows):
        return torch.equal(rows[pairs[:, 0]], rows[pairs[:, 1]])
    total = len(rows)
    return call(
        "all_equal", rows=rows, pairs=pairs, total=total, count=len(pairs),
        bytes=rows.nbytes // total, work=rows.numel(),
    )  # fmt: skip
