"""Products of all places of a mesh at once by the C loop, results put where chips want them.

Some things are not made by themselves. After a product of which every place has a part comes a sum
over an axis, nearly always, and the loop makes that without writing the parts down. After a gather
comes a product, which reads the parts where they lie. Whoever reads them all the same finds them
made (loops/call.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from backends.emulator.api.types import TILE
from backends.emulator.loops import native
from backends.emulator.loops.call import CONSTANTS, LANES, Later, call, can_run, team_size
from backends.emulator.loops.moves import contiguous
from backends.emulator.numerics.tiles import Tiles, Total

_PANEL_VALUES = 1 << 19  # of as many rows as stay in a core's cache
_PANEL = 240  # rows of a product that stay in a core's cache while weights pass
FEW = CONSTANTS["FEW"]
_MOST_SUMMED = CONSTANTS["MOST_SUMMED"]
_STRIP = 2 * CONSTANTS["STRETCH"]  # of which the width of parts that lie apart is a multiple
_ROWS_ANYWHERE = 16  # with more of them narrow vectors do worse than libraries


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
    """Rows, as `multiply` takes them, times a weight, as a result [r, c, ..., N].

    `tiles` gives those of the product, or of its sum over a mesh axis.
    """

    tiles: Callable[[Total | None], Tiles]
    mantissa_bits: int
    is_wide: bool

    @classmethod
    def of(
        cls, rows: torch.Tensor, tiles: Callable[[Total | None], Tiles], shape: Sequence[int],
        mantissa_bits: int, is_wide: bool,
    ) -> Pending:  # fmt: skip
        own: Pending = cls(rows, shape)
        own.tiles, own.mantissa_bits, own.is_wide = tiles, mantissa_bits, is_wide
        return own

    def make(self) -> torch.Tensor:
        tiles, shape = self.tiles(None), tuple(self.shape)
        return multiply(self.source, tiles, shape, self.mantissa_bits, self.is_wide)

    @property
    def recipe(self) -> Callable[..., Pending]:
        bits, is_wide = self.mantissa_bits, self.is_wide
        return partial(Pending.of, tiles=self.tiles, mantissa_bits=bits, is_wide=is_wide)

    def summed(self, total: Total, mantissa_bits: int) -> torch.Tensor | None:
        """Its sum over a mesh axis, rounded; None where that is not made by the loop."""
        is_whole = self.shape[-1] % (TILE * total.parts) == 0
        if self.is_made or not is_whole or self.shape[total.axis] > _MOST_SUMMED:
            return None
        return multiply(
            self.source, self.tiles(total), total_shape(self.shape, total), self.mantissa_bits,
            self.is_wide, sum_bits=mantissa_bits,
        )  # fmt: skip


class Gathered(Later):
    """What chips along a mesh axis have, as all of them get it [r, c, ..., chips D]."""

    axis: int

    @classmethod
    def of(cls, x: torch.Tensor, axis: int) -> Gathered | None:
        """The gather of x [r, c, ..., D]; None where products could not read that as it lies."""
        rows = x.numel() // (x.shape[0] * x.shape[1] * x.shape[-1])
        is_last = axis == 1 or x.shape[1] == 1  # of mesh axes
        is_plain = type(x) is torch.Tensor and x.dtype is torch.bfloat16 and can_run(x)
        if rows <= FEW or not is_last or not is_plain or x.shape[-1] % _STRIP:
            return None
        if native.products() != "pairs":
            return None
        shape = list(x.shape)
        shape[axis], shape[-1] = 1, shape[axis] * shape[-1]
        return cls._on(x, axis, shape)

    @classmethod
    def _on(cls, x: torch.Tensor, axis: int, shape: Sequence[int]) -> Gathered:
        own: Gathered = cls(x, shape)
        own.axis = axis
        return own

    def make(self) -> torch.Tensor:
        x, last = self.source, self.source.dim() - 1
        return contiguous(x.movedim(self.axis, last - 1)).view(self.shape)

    @property
    def recipe(self) -> Callable[..., Gathered]:
        return partial(Gathered._on, axis=self.axis)

    @property
    def strips(self) -> torch.Tensor:
        """[places, strips, rows, D]: the parts of each of the other axis' places."""
        places = self.source.shape[0] if self.axis == 1 else 1
        return self.source.view(places, self.source.shape[self.axis], -1, self.source.shape[-1])


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

    More than a few rows may come in strips [places, strips, M, K / strips], see Gathered.
    Products are rounded to bfloat16 (no `mantissa_bits`) or to blocks of `mantissa_bits`, and sums
    of them over a mesh axis to `sum_bits`.
    """
    x, out = contiguous(x), x.new_empty(shape)
    places, *strips, rows, span = x.shape
    depth = math.prod(strips) * span
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
        depth=depth, span=span, width=shape[-1], mantissa_bits=mantissa_bits, is_wide=is_wide,
        panel=panel, summed=tiles.summed, sum_bits=sum_bits,
    )  # fmt: skip
    return out
