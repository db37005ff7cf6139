"""Products of all places of a mesh at once by the C loop, results put where chips want them.

A product of which every place has a part is not made by itself: what comes next is a sum over an
axis, nearly always, and the loop makes that without writing the parts down. Whoever reads it all
the same finds it made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from backends.emulator.api.types import TILE
from backends.emulator.loops import native
from backends.emulator.loops.call import CONSTANTS, LANES, Later, call, is_heard, team_size
from backends.emulator.loops.moves import contiguous
from backends.emulator.numerics.tiles import Tiles, Total

_PANEL_VALUES = 1 << 19  # of as many rows as stay in a core's cache
_PANEL = 240  # rows of a product that stay in a core's cache while weights pass
FEW = CONSTANTS["FEW"]
_MOST_SUMMED = CONSTANTS["MOST_SUMMED"]
_ROWS_ANYWHERE = 16  # with more of them narrow vectors do worse than libraries
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


class Known(NamedTuple):
    """The last row of each place and what it gave: that of an idle user, in every step the same."""

    rows: torch.Tensor  # [places, K]
    results: torch.Tensor  # [chips, N]

    @classmethod
    def of(cls, x: torch.Tensor, places: int, shape: tuple[int, ...]) -> Known:
        """Nothing known yet but what zeros give."""
        chips = shape[0] * shape[1]
        return cls(x.new_zeros(places, x.shape[-1]), x.new_zeros(chips, shape[-1]))


class Pending(Later):
    """Rows [places, M, K] times a weight, as a result [r, c, ..., N] that nobody has read yet.

    `tiles` gives those of the product, or of its sum over a mesh axis.
    """

    _tiles: Callable[[Total | None], Tiles]
    _mantissa_bits: int
    _is_wide: bool
    _made: torch.Tensor | None
    _keeps_made: bool  # not where its source changes from run to run
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls, source: torch.Tensor, tiles: Callable[[Total | None], Tiles], shape: Sequence[int],
        mantissa_bits: int, is_wide: bool,
    ) -> Pending:  # fmt: skip
        own = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=source.dtype)
        own.source, own._tiles, own._made = source, tiles, None
        own._mantissa_bits, own._is_wide, own._keeps_made = mantissa_bits, is_wide, True
        return own

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _VIEWS:
            viewed = args[0]._viewed(args[1])
            if viewed is not None:
                return viewed
        args, kwargs = tree_map_only(Pending, Pending.made, (args, kwargs or {}))
        return func(*args, **kwargs)

    def made(self) -> torch.Tensor:
        """The result; of a recording every reader has one of its own."""
        if self._made is not None:
            return self._made
        shape = tuple(self.shape)
        tiles = self._tiles(None)
        result = multiply(self.source, tiles, shape, self._mantissa_bits, self._is_wide)
        if self._keeps_made and not is_heard():
            self._made = result
        return result

    def on(self, source: torch.Tensor) -> Pending:
        """The same product of rows that a replay writes anew."""
        given = (self._tiles, self.shape, self._mantissa_bits, self._is_wide)
        other = Pending(source, *given)
        other._keeps_made = False
        return other

    def summed(self, total: Total, mantissa_bits: int) -> torch.Tensor | None:
        """Its sum over a mesh axis, rounded; None where that is not made by the loop."""
        is_whole = self.shape[-1] % (TILE * total.parts) == 0
        is_taken = is_whole and self.shape[total.axis] <= _MOST_SUMMED
        if not is_taken or self._made is not None:
            return None
        return multiply(
            self.source, self._tiles(total), total_shape(self.shape, total), self._mantissa_bits,
            self._is_wide, sum_bits=mantissa_bits,
        )  # fmt: skip

    def _viewed(self, sizes: Sequence[int]) -> Pending | None:
        """The same with its rows in other dims; None for other views."""
        if -1 in sizes:
            rest = -math.prod(sizes)
            sizes = [self.numel() // rest if size == -1 else size for size in sizes]
        is_same = len(sizes) > 2 and (*sizes[:2], sizes[-1]) == (*self.shape[:2], self.shape[-1])
        if not is_same or self._made is not None:
            return None
        viewed = Pending(self.source, self._tiles, sizes, self._mantissa_bits, self._is_wide)
        viewed._keeps_made = self._keeps_made
        return viewed


def total_shape(shape: Sequence[int], total: Total) -> tuple[int, ...]:
    """The shape of a sum of a result [r, c, ..., N] over a mesh axis."""
    axis, parts = total
    return (*shape[:axis], parts, *shape[axis + 1 : -1], shape[-1] // parts)


def can_multiply(x: torch.Tensor, rows: int) -> bool:
    """Whether the C loops multiply `rows` rows of x as fast as any library."""
    if native.library() is None or x.device.type != "cpu":
        return False
    return rows <= _ROWS_ANYWHERE or native.library().lanes() == LANES  # type: ignore[union-attr]


def multiply(
    x: torch.Tensor, tiles: Tiles, shape: tuple[int, ...], mantissa_bits: int, is_wide: bool,
    known: Known | None = None, sum_bits: int = -1,
) -> torch.Tensor:  # fmt: skip
    """Rows x [places, M, K] of bfloat16 times a weight, as a result of this shape.

    Products are rounded to bfloat16 (no `mantissa_bits`) or to blocks of `mantissa_bits`, and sums
    of them over a mesh axis to `sum_bits`.
    """
    x, out = contiguous(x), x.new_empty(shape)
    places, rows, depth = x.shape
    _, words, mantissas, exponents = tiles.store
    room, threads = None, team_size()
    if mantissas is not None:
        room = torch.empty(threads, tiles.most_pairs, TILE, dtype=torch.int32)
    panel = min(rows, max(_PANEL, _PANEL_VALUES // (depth * tiles.summed)))
    wide = torch.empty(threads, tiles.summed, panel + TILE, depth)
    call(
        "multiply", x=x, weights=words, mantissas=mantissas, exponents=exponents,
        room=room, wide=wide, threads=threads,
        packed=0 if mantissas is None else mantissas.shape[1],
        most_pairs=tiles.most_pairs, tiles=tiles.records,
        goals=tiles.goals, out=out, known=None if known is None else known.rows,
        known_results=None if known is None else known.results,
        places=places, count=len(tiles.records), chips=math.prod(shape[:2]), rows=rows,
        depth=depth, width=shape[-1], mantissa_bits=mantissa_bits, is_wide=is_wide,
        panel=panel, summed=tiles.summed, sum_bits=sum_bits,
    )  # fmt: skip
    return out
