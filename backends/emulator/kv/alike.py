"""Which chips' caches hold the same, so that decode attention reads those once.

Where a model has fewer key/value heads than the mesh has chips, several chips keep the same head,
and some none. Nothing says so but the values: a cache begins as the same zeros everywhere, chips
stay alike as long as each write puts the same rows in the same places, and empty as long as those
are zeros. What is known hangs on the cache's torch
tensor; of one without it nothing is known.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache, cached_property, lru_cache

import torch

from backends.emulator.loops.call import call, can_run

Mesh = tuple[int, ...]  # rows and columns


class Alike:
    """For every chip of a mesh the first one whose cache is the same, and which hold but zeros."""

    def __init__(
        self, mesh: Mesh, first: tuple[int, ...], empty: frozenset[int] = frozenset()
    ) -> None:
        self.mesh, self.first, self.empty = mesh, first, empty
        self.is_known = bool(empty) or first != tuple(range(len(first)))

    @cached_property
    def chain(self) -> torch.Tensor:
        """[2, chips]: the first chip of each one's group, and the next one in it or -1.

        Empty ones are in no group: their first is -1.
        """
        leaders, after = [-1] * len(self.first), [-1] * len(self.first)
        groups: dict[int, list[int]] = {}
        for chip, leader in enumerate(self.first):
            if chip not in self.empty:
                groups.setdefault(leader, []).append(chip)
        for group in groups.values():
            for chip, following in zip(group, [*group[1:], -1], strict=True):
                leaders[chip], after[chip] = group[0], following
        return torch.tensor([leaders, after])

    @cached_property
    def are_columns_alike(self) -> bool:
        """Whether chips of a row hold the same as its first, and there are others."""
        cols = self.mesh[1]
        return cols > 1 and all(
            leader == self.first[chip // cols * cols] for chip, leader in enumerate(self.first)
        )

    @cached_property
    def of_first_column(self) -> Alike:
        """What is known of the first column alone, where the others are alike."""
        rows, cols = self.mesh
        first = tuple(self.first[row * cols] // cols for row in range(rows))
        return _alike((rows, 1), first, frozenset(at // cols for at in self.empty))

    def within(self, keys: Sequence[Hashable], empty: frozenset[int]) -> Alike:
        """Groups of those chips that are in one group now and have equal keys."""
        known: dict[Hashable, int] = {}
        pairs = zip(self.first, keys, strict=True)
        first = tuple(known.setdefault(p, at) for at, p in enumerate(pairs))
        return _alike(self.mesh, first, self.empty & empty)

    @lru_cache  # noqa: B019 (few exist, and all are kept by _alike)
    def pairs(self, mesh: Mesh) -> torch.Tensor | None:
        """[n, 2] places of data [r, c, ...] (each 1 or the mesh's) that must hold the same.

        The second is -1 where that is zeros.
        """
        at = self.places(mesh)
        found = {(at[leader], at[chip]) for chip, leader in enumerate(self.first)}
        found |= {(at[chip], -1) for chip in self.empty}
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


@cache
def _alike(mesh: Mesh, first: tuple[int, ...], empty: frozenset[int] = frozenset()) -> Alike:
    return Alike(mesh, first, empty)


@lru_cache
def _together(known: tuple[Alike, ...], where: tuple[Mesh, ...]) -> Alike:
    """Chips that are alike in all of `known`, and share all data of meshes `where`."""
    found, *others = known
    for other in others:
        found = found.within(other.first, other.empty)
    for mesh in where:
        found = found.within(found.places(mesh), found.empty)
    return found


def of(caches: Sequence[torch.Tensor], where: Sequence[torch.Tensor]) -> Alike:
    """Chips whose users find the same in caches [r, c, ...] at `where` [r, c, ...] they look."""
    known = tuple(getattr(cache, "alike", None) for cache in caches)
    if None in known:
        mesh = caches[0].shape[:2]
        return _alike(mesh, tuple(range(mesh[0] * mesh[1])))
    return _together(known, tuple(each.shape[:2] for each in where))


def note_zeros(cache: torch.Tensor) -> None:
    """A cache [r, c, ...] holds but zeros; only the processor's loops make use of it."""
    mesh = cache.shape[:2]
    chips = mesh[0] * mesh[1]
    if cache.device.type == "cpu":
        known = _alike(mesh, (0,) * chips, frozenset(range(chips)))
        cache.alike = known  # type: ignore[attr-defined]


def note_write(cache: torch.Tensor, rows: torch.Tensor, *where: torch.Tensor) -> None:
    """Each chip wrote its `rows` to its `where`: data [r, c, ...], each 1 or the mesh's."""
    known: Alike | None = getattr(cache, "alike", None)
    if known is None or not known.is_known:
        return
    known = _together((known,), tuple(each.shape[:2] for each in where))
    mesh = rows.shape[:2]
    pairs = known.pairs(mesh)
    if pairs is not None and not all_equal(rows.reshape(mesh[0] * mesh[1], -1), pairs):
        values = [
            row.contiguous().view(torch.uint8).numpy().tobytes() for row in rows.flatten(0, 1)
        ]
        some, places = rows.flatten(0, 1).flatten(1).any(1).tolist(), known.places(mesh)
        empty = frozenset(chip for chip, place in enumerate(places) if not some[place])
        known = known.within([values[place] for place in places], empty)
    cache.alike = known  # type: ignore[attr-defined]


def all_equal(rows: torch.Tensor, pairs: torch.Tensor) -> bool:
    """Whether those of rows [*, n] that `pairs` [count, 2] names are the same, or zeros: -1."""
    if not can_run(rows):
        return all(
            torch.equal(rows[one], rows[other]) if other >= 0 else not rows[one].any()
            for one, other in pairs.tolist()
        )
    total = len(rows)
    return call(
        "all_equal", rows=rows, pairs=pairs, total=total, count=len(pairs),
        bytes=rows.nbytes // total, work=rows.numel(),
    )  # fmt: skip
