"""Products of mesh-batched data, as few and as large as the mesh allows.

Along each mesh axis, chips that share a weight add rows to one product and chips that share
activations add columns; only along an axis where both differ is there a product per place. Where
the C loops take a product they do all places at once and put results where chips want them;
otherwise each place has a kernel of its own (kernels.py).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from backends.emulator.api.types import TILE, DataType
from backends.emulator.loops.call import is_heard, made
from backends.emulator.loops.moves import contiguous, gathered
from backends.emulator.numerics.at_once import (
    FEW,
    Gathered,
    Known,
    Pending,
    can_multiply,
    multiply,
)
from backends.emulator.numerics.fidelity import cut
from backends.emulator.numerics.formats import MANTISSA_BITS, ROUNDED, finish
from backends.emulator.numerics.kernels import Product, Weight, give_room, is_fixed, take_room
from backends.emulator.numerics.tiles import Packed, Place, Store, Tiles, Total, part_of, store_of

Forms = dict[Hashable, Any]  # what was made of a constant operand, kept on its tensor


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
        *_, self._depth, self._width = data.shape
        self.mesh, self._bits, self._data = tuple(data.shape[:2]), bits, data
        self._kept: tuple[Store | None] | None = None  # what _store found
        self._tiles: dict[tuple[Sequence[Place], Total | None], Tiles] = {}
        self._joined: dict[Place, Weight] = {}

    def _matrices(self) -> torch.Tensor:
        """[r, c, N, K]; of a packed weight unpacked."""
        return self._data.reshape(*self.mesh, self._depth, self._width).mT

    def product(self, x: torch.Tensor, rounding: Rounding | None) -> Product:
        """The function that multiplies mesh-batched data of x's shape by this weight."""
        split = [x.shape[axis] > 1 and self.mesh[axis] > 1 for axis in (0, 1)]
        places = tuple(
            (r, c)
            for r in (range(self.mesh[0]) if split[0] else [None])
            for c in (range(self.mesh[1]) if split[1] else [None])
        )
        if rounding is not None and self._suits_loops(x, places, rounding):
            store = self._store()
            if store is not None:
                return self._at_once(x, partial(self._tiles_of, store, places), rounding)
        is_narrow = rounding is not None and rounding.is_to_bfloat16
        multiply = self._one_by_one(x, places, is_narrow)
        if rounding is None:
            return multiply
        return lambda x: rounding(multiply(x))

    def _suits_loops(self, x: torch.Tensor, places: Sequence[Place], rounding: Rounding) -> bool:
        """Whether the C loops take this product and are the fastest way."""
        spread = x.shape[0] * x.shape[1]
        return (
            spread == len(places)
            and x.dtype is self._data.dtype is torch.bfloat16
            and rounding.dtype in ROUNDED
            and self._width % TILE == self._depth % 2 == 0
            and can_multiply(x, x.numel() // (spread * self._depth))
        )

    def _store(self) -> Store | None:
        """The weight as the loops read it; None where there is no room for another copy."""
        if isinstance(self._data, Packed) and self._bits is None:
            return self._data.store
        if self._kept is None:
            size, store = 2 * self._data.numel(), None
            if take_room(size):
                store = store_of(self._matrices(), self._bits)
                give_room(size - store.nbytes)
                weakref.finalize(self, give_room, store.nbytes)
            self._kept = (store,)
        return self._kept[0]

    def _tiles_of(self, store: Store, places: Sequence[Place], total: Total | None) -> Tiles:
        if (places, total) not in self._tiles:
            self._tiles[places, total] = Tiles(store, places, total)
        return self._tiles[places, total]

    def _at_once(
        self, x: torch.Tensor, tiles: Callable[[Total | None], Tiles], rounding: Rounding
    ) -> Product:
        mesh = (max(a, b) for a, b in zip(x.shape, self.mesh, strict=False))
        shape = (*mesh, *x.shape[2:-1], self._width)
        bits = MANTISSA_BITS.get(rounding.dtype, 0)
        places = x.shape[0] * x.shape[1]
        count = x.numel() // places // x.shape[-1]

        def rows_of(x: torch.Tensor) -> torch.Tensor:
            if isinstance(x, Gathered) and not x.is_made:
                return x.strips
            return contiguous(made(x)).view(places, -1, x.shape[-1])

        if places > 1 and count > FEW:

            def later(x: torch.Tensor) -> torch.Tensor:
                return Pending.of(rows_of(x), tiles, shape, bits, rounding.is_wide)

            return later
        known = Known.of(x, places, shape) if 1 < count <= FEW else None

        def run(x: torch.Tensor) -> torch.Tensor:
            rows = rows_of(x)
            out = multiply(rows, tiles(None), shape, bits, rounding.is_wide, known)
            if known is not None and not is_heard():
                known.rows.copy_(rows[:, -1])
                known.results.copy_(out.view(len(known.results), -1, shape[-1])[:, -1])
            return out

        return run

    def _one_by_one(self, x: torch.Tensor, places: Sequence[Place], narrow: bool) -> Product:
        parts = [(place, self._at(x, place, narrow)) for place in places]
        if len(parts) == 1:
            return parts[0][1]
        width = self._width

        def run(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor | None = None
            for place, product in parts:
                found = product(part_of(x, place))
                if out is None:
                    mesh = (max(a, b) for a, b in zip(x.shape, self.mesh, strict=False))
                    out = found.new_empty(*mesh, *x.shape[2:-1], width)
                part_of(out, place).copy_(found)
            assert out is not None
            return out

        return run

    def _at(self, x: torch.Tensor, place: Place, narrow: bool) -> Product:
        """The best kernel for the activations of one place."""
        rows, cols = (1 if at is not None else n for at, n in zip(place, self.mesh, strict=True))
        parts = (rows, cols, self._width)
        if place not in self._joined:
            own = part_of(self._matrices(), place)
            self._joined[place] = Weight(cut(own, self._bits).flatten(0, 2).contiguous())
        multiply = self._joined[place].product(part_of(x, place), narrow=narrow)
        inner = tuple(range(2, x.dim() - 1))  # x's dims but the mesh's and K

        def run(x: torch.Tensor) -> torch.Tensor:
            out = multiply(x)
            if rows == cols == 1:
                return out
            out = out.unflatten(-1, parts)  # [xr, xc, ..., M, wr, wc, N]
            last = out.dim()
            out = out.permute(0, last - 3, 1, last - 2, *inner, last - 1)
            return out.flatten(0, 1).flatten(1, 2)  # an axis is of x or of the weight

        return run


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
    ids = flat.int().view(1, 1, -1)

    def pick(w: torch.Tensor) -> torch.Tensor:
        table = w.reshape(1, 1, -1, shape[-1])
        found = gathered(table, ids)
        if found is None:
            found = table[0, 0].index_select(0, flat)
        return found.view(shape_out)

    return pick


def free_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Product of two tensors of any batch, in float32."""
    missing = x.dim() - w.dim()
    if missing > 0:
        w = w.reshape(*w.shape[:2], *(1,) * missing, *w.shape[2:])
    elif missing < 0:
        x = x.reshape(*x.shape[:2], *(1,) * -missing, *x.shape[2:])
    return torch.matmul(x.float(), w.float())
