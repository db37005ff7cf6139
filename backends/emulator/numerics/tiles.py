"""Constant matrices in tiles of columns, as the C loops read them; block formats stay packed.

A tile is kept once, however many chips have it, without the zeros that padding put at the end of
its depth; a tile of zeros is not kept. A weight that comes packed from a file is `Packed`: products
read it as it is, and whoever else wants its values gets them unpacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from backends.emulator.api.types import TILE
from backends.emulator.loops import native
from backends.emulator.loops.call import call, can_run
from backends.emulator.numerics.fidelity import cut
from backends.emulator.numerics.formats import seen_mask

Place = tuple[int | None, int | None]  # row and column of chips; None: all, their product is one


class Store(NamedTuple):
    """The tiles of matrices [r, c, N, K]: packed, or pairs of neighbours in K as words."""

    spans: torch.Tensor  # [r, c, N / TILE, 2]: a tile's first pair and their number; of zeros none
    words: torch.Tensor | None  # [pairs, TILE]
    mantissas: torch.Tensor | None  # [pairs, 32 or 64], see loops/packed.h
    exponents: torch.Tensor | None  # [pairs, 2]

    @property
    def nbytes(self) -> int:
        """What the weights take."""
        return sum(part.nbytes for part in self[1:] if part is not None)

    def check(self) -> None:
        """Refuse spans beyond what is kept: loops read what they say."""
        assert self.mantissas is not None and self.exponents is not None
        total, spans = len(self.mantissas), self.spans
        if len(self.exponents) != total or bool(
            ((spans < 0) | (spans.sum(-1, keepdim=True) > total)).any()
        ):
            raise ValueError("its tiles lie beyond its end")


def store_of(matrices: torch.Tensor, bits: int | None = None) -> Store:
    """Matrices [r, c, N, K] of bfloat16, N of whole tiles; of weights `bits` count."""
    rows, cols, n, k = matrices.shape
    tiles, per_chip = matrices.reshape(-1, TILE, k), n // TILE
    groups = _equal_tiles(tiles) if rows * cols > 1 else {i: [i] for i in range(len(tiles))}
    groups.pop(-1, None)
    spans = torch.zeros(len(tiles), 2, dtype=torch.int64)
    pieces: list[tuple[torch.Tensor, int]] = []  # tiles, and how many pairs count of them
    begin = 0
    for chip in range(rows * cols):
        first, last = chip * per_chip, (chip + 1) * per_chip
        own = [at for at in range(first, last) if at in groups]
        if not own:
            continue
        whole = tiles[first:last]
        pairs = (_used_depth(whole) + 1) // 2
        pieces.append((whole if len(own) == per_chip else tiles[own], pairs))
        for at in own:
            spans[groups[at]] = torch.tensor([begin, pairs])
            begin += pairs
    spans = spans.view(rows, cols, per_chip, 2)
    packed = _packed(pieces, begin, bits)
    if packed is not None:
        return Store(spans, None, *packed)
    whole_words = [_paired(cut(kept, bits), pairs) for kept, pairs in pieces]
    words = torch.cat(whole_words) if pieces else torch.zeros(0, TILE, dtype=torch.int32)
    return Store(spans, words, None, None)


def _packed(
    pieces: Sequence[tuple[torch.Tensor, int]], total: int, bits: int | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mantissas and exponents of tiles [n, TILE, K]; None where a block has more bits."""
    if not all(can_run(tiles) for tiles, _ in pieces):
        return None
    for packed in (32, 64):  # bytes of 2 TILE mantissas: of 3 bits and a sign, or of 7
        mantissas = torch.empty(total, packed, dtype=torch.uint8)
        exponents, first = torch.empty(total, 2, dtype=torch.int32), 0
        for tiles, pairs in pieces:
            count, _, depth = tiles.shape
            last = first + count * pairs
            if not call(
                "pack_tiles", tiles=tiles, mantissas=mantissas[first:last],
                exponents=exponents[first:last], count=count, depth=depth, pairs=pairs,
                packed=packed, mask=0xFFFF if bits is None else seen_mask(bits),
            ):  # fmt: skip
                break
            first = last
        else:
            return mantissas, exponents
    return None


def _paired(tiles: torch.Tensor, pairs: int) -> torch.Tensor:
    """Tiles [n, TILE, K] as [n pairs, TILE] of neighbours in K, two in 32 bits."""
    return tiles[..., : 2 * pairs].contiguous().view(torch.int32).mT.reshape(-1, TILE)


def _used_depth(tiles: torch.Tensor) -> int:
    """K of tiles [*, TILE, K] without zeros at the end."""
    depth = tiles.shape[-1]
    while depth > TILE and not bool(tiles[..., depth - TILE : depth].any()):
        depth -= TILE
    return depth


def _equal_tiles(tiles: torch.Tensor) -> dict[int, list[int]]:
    """Of equal tiles [*, TILE, K] the first one, and all; those of zeros are under -1."""
    groups: dict[int, list[int]] = {}
    known: dict[bytes, int] = {}  # a tile's first row tells most that differ
    for index, tile in enumerate(tiles):
        row = tile[0].view(torch.int16).numpy().tobytes()
        if row.count(0) == len(row) and not bool(tile.any()):
            first = -1
        else:
            first = known.setdefault(row, index)
            first = first if torch.equal(tile, tiles[first]) else index
        groups.setdefault(first, []).append(index)
    return groups


class Total(NamedTuple):
    """A sum over a mesh axis, its columns dealt out to `parts` places along that axis."""

    axis: int
    parts: int


class Tiles:
    """What a product reads of a store: each place's tiles, and to which columns of which chips.

    With a `total`, goals are columns of that sum, and get what all tiles named for them give.
    """

    def __init__(self, store: Store, places: Sequence[Place], total: Total | None = None) -> None:
        found = _apart(store, places) if total is None else _summed(store, places, total)
        found.sort(key=lambda group: not group[0])  # zeros, which lie nowhere, come last
        records: list[tuple[int, int, int, int, int]] = []
        goals: list[list[int]] = []
        for tiles, its_goals in found:
            ends = (len(goals), len(goals) + len(its_goals))
            records += [(*tile, *ends) for tile in tiles or [(0, 0, 0)]]
            goals += its_goals
        self.store = store
        self.most_pairs = max(sum(pairs for _, pairs, _ in tiles) for tiles, _ in found)
        self.summed = max(1, *(len(tiles) for tiles, _ in found))
        self.records = torch.tensor(records)  # [tiles, 5] as products.c has them
        self.goals = torch.tensor(goals)  # [*, 2]: chip and column


# place, pairs and first pair of tiles whose sum is wanted (zeros: none), and to which goals
Group = tuple[list[tuple[int, int, int]], list[list[int]]]


def _apart(store: Store, places: Sequence[Place]) -> list[Group]:
    """Every tile by itself, those of a place in the order in which they are read."""
    rows, cols, count, _ = store.spans.shape
    chips = torch.arange(rows * cols).view(rows, cols, 1).expand(-1, -1, count)
    columns = torch.arange(0, count * TILE, TILE).expand_as(chips)
    all_goals = torch.stack([chips, columns], -1)
    found: list[Group] = []
    for number, place in enumerate(places):
        members: dict[tuple[int, int], list[list[int]]] = {}  # of each tile its goals
        for span, goal in zip(
            part_of(store.spans, place).reshape(-1, 2).tolist(),
            part_of(all_goals, place).reshape(-1, 2).tolist(),
            strict=True,
        ):
            members.setdefault(tuple(span), []).append(goal)
        for (first, pairs), its_goals in _two_streams(list(members.items())):
            found.append(([(number, pairs, first)] if pairs else [], its_goals))
    return found


def _summed(store: Store, places: Sequence[Place], total: Total) -> list[Group]:
    """The tiles that each column of a sum comes of, those of zeros left out."""
    rows, cols, count, _ = store.spans.shape
    numbers = torch.empty(rows, cols, dtype=torch.int64)
    for number, place in enumerate(places):
        part_of(numbers, place).fill_(number)
    across, width = (cols if total.axis == 0 else rows), count * TILE // total.parts
    members: dict[tuple[tuple[int, int, int], ...], list[list[int]]] = {}
    for other in range(across):
        line = (slice(None), other) if total.axis == 0 else (other, slice(None))
        own, spans = numbers[line].tolist(), store.spans[line].tolist()
        for at in range(count):
            key = tuple(
                (number, pairs, first)
                for number, (first, pairs) in zip(own, (each[at] for each in spans), strict=True)
                if pairs
            )
            part, column = divmod(at * TILE, width)
            chip = part * across + other if total.axis == 0 else other * total.parts + part
            members.setdefault(key, []).append([chip, column])
    return [(list(key), its_goals) for key, its_goals in members.items()]


def _two_streams(tiles: list[Any]) -> list[Any]:
    """First and second half in turns: with wide registers two are read at once, each in order."""
    half = len(tiles) // 2
    pairs = zip(tiles[:half], tiles[half:], strict=False)
    return [tile for pair in pairs for tile in pair] + tiles[2 * half :]


def part_of(data: torch.Tensor, place: Place) -> torch.Tensor:
    """What a place has of mesh-batched data, mesh dims kept; None: all along that axis."""
    for axis, at in enumerate(place):
        if at is not None:
            data = data.narrow(axis, at, 1)
    return data


class Packed(torch.Tensor):
    """A weight [r, c, 1.., K, N] of bfloat16 values kept in a store.

    To torch it is a tensor like others; every op unpacks it first.
    """

    store: Store
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, store: Store, shape: Sequence[int]) -> Packed:
        *_, k, n = shape
        strides = [n * k] * (len(shape) - 2) + [1, k]
        strides[0] *= shape[1]
        made = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), strides=tuple(strides), dtype=torch.bfloat16
        )
        made.store = store
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(Packed, Packed.unpacked, (args, kwargs or {}))
        return func(*args, **kwargs)

    def unpacked(self) -> torch.Tensor:
        """The values, in memory of their own."""
        *mesh_and_ones, k, n = self.shape
        spans, (_, _, mantissas, exponents) = self.store.spans, self.store
        assert mantissas is not None and exponents is not None
        tiles = torch.empty(spans[..., 0].numel(), TILE, k, dtype=torch.bfloat16)
        call(
            "unpack_tiles", mantissas=mantissas, exponents=exponents, spans=spans.view(-1, 2),
            tiles=tiles, count=len(tiles), depth=k, packed=mantissas.shape[1],
        )  # fmt: skip
        return tiles.view(*mesh_and_ones, n, k).mT


def packed(data: torch.Tensor) -> Packed | None:
    """A weight [r, c, 1.., K, N] packed; None where its values need bfloat16, or nothing packs."""
    *_, k, n = data.shape
    is_weight = data.dim() > 3 and all(size == 1 for size in data.shape[2:-2])
    if not is_weight or data.dtype is not torch.bfloat16 or n % TILE or k % 2:
        return None
    if not can_run(data.mT):
        return None
    store = store_of(data.reshape(*data.shape[:2], k, n).mT)
    return None if store.mantissas is None else Packed(store, data.shape)


def packing() -> int | None:
    """Which order of mantissas this processor's loops read; None: there are no loops."""
    library = native.library()
    return None if library is None else int(library.packing())
