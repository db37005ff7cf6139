"""Products of mesh-batched data, as few and as large as the mesh allows.

Along each mesh axis, chips that share a weight add rows to one product and chips that share
activations add columns; only along an axis where both differ is there a product per place. Where
the C loops take a product they do all places at once and put results where chips want them;
otherwise each place has a kernel of its own (kernels.py).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch

from backends.emulator.api.types import TILE, DataType
from backends.emulator.loops import native
from backends.emulator.loops.call import LANES, call, can_run, team_size
from backends.emulator.loops.moves import contiguous
from backends.emulator.numerics.fidelity import cut
from backends.emulator.numerics.formats import MANTISSA_BITS, ROUNDED, finish, seen_mask
from backends.emulator.numerics.kernels import Product, Weight, give_room, is_fixed, take_room

_PANEL_VALUES = 1 << 19  # of as many rows as stay in a core's cache
_PANEL = 240  # rows of a product that stay in a core's cache while weights pass
_ROWS_ANYWHERE = 16  # with more of them narrow vectors do worse than libraries

Forms = dict[Hashable, Any]  # what was made of a constant operand, kept on its tensor
Place = tuple[int | None, int | None]  # row and column of chips; None: all, their product is one


class Rounding(NamedTuple):
    """What happens to sums on their way out."""

    dtype: DataType  # the format of results
    is_wide: bool  # sums reach it as float32, not as bfloat16

    def __call__(self, sums: torch.Tensor) -> torch.Tensor:
        return finish(sums if self.is_wide else sums.to(torch.bfloat16), self.dtype)

    @property
    def is_to_bfloat16(self) -> bool:
        """Whether sums are rounded to bfloat16 in any case, so that a kernel may do so itself."""
        return not self.is_wide or self.dtype is DataType.BFLOAT16


def constant_product(
    x: torch.Tensor, forms: Forms, data: torch.Tensor, transposed: bool, bits: int | None,
    rounding: Rounding | None,
) -> torch.Tensor:  # fmt: skip
    """x [r, c, ..., M, K] times a weight, rounded; sums are float32 where `rounding` is None.

    What is made of the weight's `data` is kept in `forms`.
    """
    _renew(forms, data)
    key = (x.shape, x.dtype, transposed, bits, rounding, is_fixed())
    run = forms.get(key)
    if run is None:
        weight = forms.get((transposed, bits))
        if weight is None:
            weight = MeshWeight(data.mT if transposed else data, bits)
            forms[transposed, bits] = weight
        run = forms[key] = weight.product(x, rounding)
    return run(x)


def _renew(forms: Forms, data: torch.Tensor) -> None:
    """Empties the forms of a constant operand that has other values now."""
    if forms.get("source") is not data:  # first use, or new values
        forms.clear()
        forms["source"] = data


class MeshWeight:
    """A constant operand [r, c, ..., K, N] of which `bits` count, as products of it read it."""

    def __init__(self, data: torch.Tensor, bits: int | None) -> None:
        *_, k, n = data.shape
        self.mesh, self._bits = tuple(data.shape[:2]), bits
        self._matrices = data.reshape(*self.mesh, k, n).mT  # [r, c, N, K]
        self._tiles: dict[tuple[Place, ...], Tiles | None] = {}
        self._joined: dict[Place, Weight] = {}

    def product(self, x: torch.Tensor, rounding: Rounding | None) -> Product:
        """The function that multiplies mesh-batched data of x's shape by this weight."""
        split = [x.shape[axis] > 1 and self.mesh[axis] > 1 for axis in (0, 1)]
        places = tuple(
            (r, c)
            for r in (range(self.mesh[0]) if split[0] else [None])
            for c in (range(self.mesh[1]) if split[1] else [None])
        )
        if rounding is not None and self._suits_loops(x, places, rounding):
            tiles = self._in_tiles(places)
            if tiles is not None:
                return self._at_once(x, tiles, rounding)
        is_narrow = rounding is not None and rounding.is_to_bfloat16
        multiply = self._one_by_one(x, places, is_narrow)
        if rounding is None:
            return multiply
        return lambda x: rounding(multiply(x))

    def _suits_loops(self, x: torch.Tensor, places: Sequence[Place], rounding: Rounding) -> bool:
        """Whether the C loops take this product and are the fastest way."""
        spread = x.shape[0] * x.shape[1]
        *_, n, k = self._matrices.shape
        return (
            spread == len(places)
            and x.dtype is self._matrices.dtype is torch.bfloat16
            and rounding.dtype in ROUNDED
            and n % TILE == k % 2 == 0
            and can_multiply(x, x.numel() // (spread * k))
        )

    def _in_tiles(self, places: tuple[Place, ...]) -> Tiles | None:
        """The weight as the loops read it; None where there is no room for another copy."""
        if places not in self._tiles:
            size = 2 * self._matrices.numel()
            self._tiles[places] = None
            if take_room(size):
                tiles = self._tiles[places] = Tiles(self._matrices, places, self._bits)
                give_room(size - tiles.nbytes)
                if tiles.packed is not None and self._matrices.is_contiguous():
                    native.let_go(self._matrices)  # the tiles are what products read
                weakref.finalize(tiles, give_room, tiles.nbytes)
        return self._tiles[places]

    def _at_once(self, x: torch.Tensor, tiles: Tiles, rounding: Rounding) -> Product:
        mesh = (max(a, b) for a, b in zip(x.shape, self.mesh, strict=False))
        shape = (*mesh, *x.shape[2:-1], self._matrices.shape[2])
        bits = MANTISSA_BITS.get(rounding.dtype, 0)
        spread = x.shape[0] * x.shape[1]

        def run(x: torch.Tensor) -> torch.Tensor:
            rows = contiguous(x).view(spread, -1, x.shape[-1])
            return multiply(rows, tiles, shape, bits, rounding.is_wide)

        return run

    def _one_by_one(self, x: torch.Tensor, places: Sequence[Place], narrow: bool) -> Product:
        parts = [(place, self._at(x, place, narrow)) for place in places]
        if len(parts) == 1:
            return parts[0][1]
        width = self._matrices.shape[2]

        def run(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor | None = None
            for place, multiply in parts:
                found = multiply(_of(x, place))
                if out is None:
                    mesh = (max(a, b) for a, b in zip(x.shape, self.mesh, strict=False))
                    out = found.new_empty(*mesh, *x.shape[2:-1], width)
                _of(out, place).copy_(found)
            assert out is not None
            return out

        return run

    def _at(self, x: torch.Tensor, place: Place, narrow: bool) -> Product:
        """The best kernel for the activations of one place."""
        own = _of(self._matrices, place)  # [wr, wc, N, K]
        if place not in self._joined:
            self._joined[place] = Weight(cut(own, self._bits).flatten(0, 2).contiguous())
        multiply = self._joined[place].product(_of(x, place), narrow=narrow)
        inner = tuple(range(2, x.dim() - 1))  # x's dims but the mesh's and K

        def run(x: torch.Tensor) -> torch.Tensor:
            out = multiply(x)
            if own.shape[0] == own.shape[1] == 1:
                return out
            out = out.unflatten(-1, own.shape[:3])  # [xr, xc, ..., M, wr, wc, N]
            last = out.dim()
            out = out.permute(0, last - 3, 1, last - 2, *inner, last - 1)
            return out.flatten(0, 1).flatten(1, 2)  # an axis is of x or of the weight

        return run


def _of(data: torch.Tensor, place: Place) -> torch.Tensor:
    """What a place has of mesh-batched data, mesh dims kept; None: all along that axis."""
    for axis, at in enumerate(place):
        if at is not None:
            data = data.narrow(axis, at, 1)
    return data


class Tiles:
    """Matrices [r, c, N, K] in tiles of columns, without what padding and replication put there.

    Rows of K that are zero at the end of a place's tiles are left out, a tile that a place has more
    than once is kept once and has several goals, and a tile of zeros is not kept. Block formats
    stay packed (loops/packed.h); of weights `bits` count.
    """

    def __init__(
        self, matrices: torch.Tensor, places: Sequence[Place], bits: int | None = None
    ) -> None:
        rows, cols, n, _ = matrices.shape
        chips = torch.arange(rows * cols).view(rows, cols, 1).expand(-1, -1, n // TILE)
        columns = torch.arange(0, n, TILE).expand_as(chips)
        all_goals = torch.stack([chips, columns], -1)
        records: list[tuple[int, int, int, int, int]] = []
        goals: list[list[int]] = []
        pieces: list[tuple[torch.Tensor, int]] = []  # tiles, and how many pairs count of them
        begin = 0
        for number, place in enumerate(places):
            tiles = _of(matrices, place).reshape(-1, TILE, matrices.shape[-1])
            own_goals = _of(all_goals, place).reshape(-1, 2).tolist()
            depth = _used_depth(tiles)
            pairs = (depth + 1) // 2
            groups = _equal_tiles(tiles) if rows * cols > 1 else {i: [i] for i in range(len(tiles))}
            zeros = groups.pop(-1, [])
            kept = tiles if len(groups) == len(tiles) else tiles[list(groups)]
            if groups:
                pieces.append((kept, pairs))
            for index, members in enumerate([*groups.values(), zeros]):
                if not members:
                    continue
                at = len(goals)
                goals += [own_goals[member] for member in members]
                used = pairs if members is not zeros else 0
                records.append((number, used, begin + index * pairs, at, len(goals)))
            begin += len(groups) * pairs
        self.weights: torch.Tensor | None = None  # [pairs, TILE], if not packed
        self.packed = _packed(pieces, begin, bits)
        if self.packed is None:
            whole = [_paired(cut(kept, bits), pairs) for kept, pairs in pieces]
            self.weights = torch.cat(whole) if whole else torch.zeros(0, TILE, dtype=torch.int32)
        self.most_pairs = max((pairs for _, pairs in pieces), default=0)
        self.records = torch.tensor(records)  # [tiles, 5] as products.c has them
        self.goals = torch.tensor(goals)  # [*, 2]: chip and column
        assert all(
            first >= 0 and first + pairs <= begin for _, pairs, first, _, _ in records if pairs
        )

    @property
    def nbytes(self) -> int:
        """What the weights take."""
        return sum(part.nbytes for part in (self.weights, *(self.packed or ())) if part is not None)


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


def picking(forms: Forms | None, x: torch.Tensor, w: torch.Tensor) -> Product | None:
    """The look-up that a product with x is, for a constant x of rows with a single 1 each.

    x [r, c, ..., M, K] of zeros and ones, w [r, c, ..., K, N] of the same dims; rows that are not
    picked do not count, not even those that are no numbers.
    """
    if forms is None or x.dim() != w.dim() or math.prod(w.shape[2:-2]) > 1:
        return None
    _renew(forms, x)
    key = ("picks", w.shape)
    if key not in forms:
        ones = x == 1
        is_pick = bool(((ones | (x == 0)).all()) & (ones.sum(-1) == 1).all())
        forms[key] = _look_up(ones.to(torch.uint8).argmax(-1), w.shape) if is_pick else None
    return forms[key]


def _look_up(rows: torch.Tensor, shape: torch.Size) -> Product:
    """The function that picks rows [r, c, ..., M] of data of a shape [r, c, ..., K, N]."""
    mesh = [max(a, b) for a, b in zip(rows.shape[:2], shape[:2], strict=True)]
    first = torch.arange(0, math.prod(shape[:-1]), shape[-2], device=rows.device)
    places = first.view(*shape[:2], *(1,) * (rows.dim() - 2)) + rows
    places = places.expand(*mesh, *rows.shape[2:])
    flat = places.reshape(-1)
    shape_out = (*places.shape, shape[-1])
    ids = flat.int()

    def pick(w: torch.Tensor) -> torch.Tensor:
        table = w.reshape(-1, shape[-1])
        if table.dtype is torch.bfloat16 and can_run(table, ids):
            out, total, width = table.new_empty(shape_out), len(table), shape[-1]
            if call(
                "gather_rows", table=table, ids=ids, out=out, rows=total, count=len(ids),
                width=width, work=out.numel(),
            ):  # fmt: skip
                return out
        return table.index_select(0, flat).view(shape_out)

    return pick


def free_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Product of two tensors of any batch, in float32."""
    missing = x.dim() - w.dim()
    if missing > 0:
        w = w.reshape(*w.shape[:2], *(1,) * missing, *w.shape[2:])
    elif missing < 0:
        x = x.reshape(*x.shape[:2], *(1,) * -missing, *x.shape[2:])
    return torch.matmul(x.float(), w.float())


def can_multiply(x: torch.Tensor, rows: int) -> bool:
    """Whether the C loops multiply `rows` rows of x as fast as any library."""
    if native.library() is None or x.device.type != "cpu":
        return False
    return rows <= _ROWS_ANYWHERE or native.library().lanes() == LANES  # type: ignore[union-attr]


def multiply(
    x: torch.Tensor, tiles: Tiles, shape: tuple[int, ...], mantissa_bits: int, is_wide: bool
) -> torch.Tensor:
    """Rows x [places, M, K] of bfloat16 times a weight, as a result of this shape.

    Sums are rounded to bfloat16 (no `mantissa_bits`) or to blocks of `mantissa_bits`.
    """
    x, out = contiguous(x), x.new_empty(shape)
    places, rows, depth = x.shape
    mantissas, exponents = tiles.packed or (None, None)
    room, threads = None, team_size()
    if mantissas is not None:
        room = torch.empty(threads, tiles.most_pairs, TILE, dtype=torch.int32)
    call(
        "multiply", x=x, weights=tiles.weights, mantissas=mantissas, exponents=exponents,
        room=room, threads=threads, packed=0 if mantissas is None else mantissas.shape[1],
        most_pairs=tiles.most_pairs, tiles=tiles.records,
        goals=tiles.goals, out=out,
        places=places, count=len(tiles.records), chips=shape[0] * shape[1], rows=rows,
        depth=depth, width=shape[-1], mantissa_bits=mantissa_bits, is_wide=is_wide,
        panel=max(_PANEL, _PANEL_VALUES // depth),
    )  # fmt: skip
    return out
