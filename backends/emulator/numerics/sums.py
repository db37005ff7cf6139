"""Sums over a mesh axis: made in float32 and rounded once; on silicon every hop rounds."""

from __future__ import annotations

import math

import torch

from backends.emulator.api.types import DataType
from backends.emulator.loops.call import LANES, call, can_run
from backends.emulator.loops.moves import contiguous, joined
from backends.emulator.numerics.at_once import Gathered, Pending, total_shape
from backends.emulator.numerics.formats import MANTISSA_BITS, ROUNDED, finish
from backends.emulator.numerics.tiles import Total

Line = tuple[tuple[int, int], ...]  # (mesh axis, chips along it) of the chips that take part


def mesh_sum(
    x: torch.Tensor, line: Line, dtype: DataType, *, dim: int | None = None
) -> torch.Tensor:
    """Sum over mesh axes in float32, rounded once; each chip's slice of it along a tensor dim."""
    (axis, chips), *others = line
    is_last = dim is None or dim + 2 == x.dim() - 1
    if not others and x.shape[axis] > 1 and dtype in ROUNDED and is_last:
        parts = 1 if dim is None else chips
        found = sum_over(x, axis, MANTISSA_BITS.get(dtype, 0), parts=parts)
        if found is not None:
            return found
    for axis, chips in line:
        shares = x.shape[axis] == 1
        x = x.float() * chips if shares else x.sum(axis, keepdim=True, dtype=torch.float32)
    return finish(x if dim is None else own_part(x, line, dim), dtype)


def add_integers(
    x: torch.Tensor, y: torch.Tensor | None, *, skips_negative: bool = False
) -> torch.Tensor:
    """x + y of 32-bit integers of one shape; x + 1 without a y, where negative x may stay as is."""
    if x.dtype is torch.int32 and (can_run(x) if y is None else can_run(x, y)):
        out = torch.empty_like(x)
        call("add_integers", x=x, y=y, out=out, count=x.numel(), skips_negative=skips_negative)
        return out
    if y is not None:
        return x + y
    return x + (x >= 0).to(x.dtype) if skips_negative else x + 1


def side_by_side(x: torch.Tensor, axis: int, chips: int, dim: int) -> torch.Tensor:
    """The parts of all chips along a mesh axis, joined along a tensor dim."""
    if x.shape[axis] == 1:
        return joined([x] * chips, dim + 2)
    if dim + 2 == x.dim() - 1:
        found = Gathered.of(x, axis)
        if found is not None:
            return found
    return contiguous(x.movedim(axis, dim + 1)).flatten(dim + 1, dim + 2).unsqueeze(axis)


def own_part(x: torch.Tensor, line: Line, dim: int) -> torch.Tensor:
    """Every chip's own slice along a tensor dim, chips counted row by row."""
    for axis, chips in line:
        parts = x.unflatten(dim + 2, (chips, -1))
        if x.shape[axis] == 1:
            x = parts.movedim(dim + 2, axis).squeeze(axis + 1)
        else:
            x = torch.diagonal(parts, 0, axis, dim + 2).movedim(-1, axis)
    return x


def sum_over(
    x: torch.Tensor, axis: int, mantissa_bits: int, *, parts: int = 1
) -> torch.Tensor | None:
    """Sum of bfloat16 [r, c, ..., D] over a mesh axis, rounded to bfloat16 or to blocks of bits.

    The axis is kept, of size `parts`, with the columns dealt out to them. None where the loop does
    not take x.
    """
    if isinstance(x, Pending):
        found = x.summed(Total(axis, parts), mantissa_bits)
        if found is not None:
            return found
    width = x.shape[-1]
    if width % (LANES * parts) or x.dtype is not torch.bfloat16 or not can_run(x):
        return None
    shape = total_shape(x.shape, Total(axis, parts))
    out, outer, places = torch.empty(shape, dtype=x.dtype), math.prod(x.shape[:axis]), x.shape[axis]
    rows = x.numel() // (outer * places * width)
    call(
        "sum_places", x=x, out=out, outer=outer, places=places, rows=rows, width=width,
        parts=parts, mantissa_bits=mantissa_bits,
    )  # fmt: skip
    return out
