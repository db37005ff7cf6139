"""Rounding to TT-NN's number formats, bit for bit what the wheel's host conversion gives.

bfloat8_b and bfloat4_b: 16 consecutive values of a row share the largest exponent; each keeps a
sign and 7 (3) bits of mantissa, hidden bit included. Bits that the alignment shifts out are lost
before rounding, rounding is to nearest even, the largest mantissa saturates, zeros are positive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from backends.emulator.api.types import DataType
from backends.emulator.loops import native
from backends.emulator.loops.call import CONSTANTS, LANES, call, can_run
from backends.emulator.loops.moves import contiguous

_Rounding = Callable[[torch.Tensor, int], torch.Tensor]

BLOCK = CONSTANTS["BLOCK"]  # values that share one exponent
MANTISSA_BITS = {DataType.BFLOAT8_B: 7, DataType.BFLOAT4_B: 3}
ROUNDED = {DataType.BFLOAT16, *MANTISSA_BITS}  # formats that bfloat16 carries
_PIECE = 1 << 17  # elements rounded at once: the intermediates stay in a core's cache
_FEW = 1 << 13  # elements up to which the number of torch calls decides, not their work
_EXPONENT, _PLACE = 0x7F800000, 23  # the exponent's bits of a float32
_SMALLEST, _LARGEST = 16, 240  # biased exponents of blocks that need no care


def to_format(x: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """Host values `x` exactly as the wheel converts them to `dtype` (in its carrier type).

    A transposed view (weights) comes back as a transposed view.
    """
    if not dtype.is_block:
        return x.to(dtype.carrier)
    bits = MANTISSA_BITS[dtype]
    if x.dim() > 1 and x.stride(-1) != 1 and x.mT.is_contiguous() and x.shape[-1] % BLOCK == 0:
        columns = x.mT.reshape(-1, BLOCK, x.shape[-2])
        done = round_columns(columns, bits)
        if done is not None:
            return done.view(x.mT.shape).mT
        return _by_piece(columns, bits, _round_exactly).view(x.mT.shape).mT
    return _by_row(x, bits, _round_exactly)


def round_to(x: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """Results of device ops in a block format, bfloat16; zeros may be negative.

    Unlike the host's, this conversion rounds float32 results as they are: no bits are lost first.
    """
    return _by_row(x, MANTISSA_BITS[dtype], _round)


def _by_row(x: torch.Tensor, mantissa_bits: int, rounding: _Rounding) -> torch.Tensor:
    """Blocks of 16 along the last dim, which is padded with zeros for the purpose."""
    width = x.shape[-1] if x.dim() else 1
    if width % BLOCK or not x.dim():
        padded = F.pad(x.reshape(*x.shape[:-1], width), (0, -width % BLOCK))
        return _by_row(padded, mantissa_bits, rounding)[..., :width].reshape(x.shape)
    blocks = contiguous(x).view(-1, BLOCK)
    if rounding is _round and can_run(blocks):
        return round_blocks(blocks, mantissa_bits).view(x.shape)
    if blocks.numel() <= _PIECE or x.is_cuda:
        return rounding(blocks, mantissa_bits).view(x.shape)
    return _by_piece(blocks, mantissa_bits, rounding).view(x.shape)


def _by_piece(blocks: torch.Tensor, mantissa_bits: int, rounding: _Rounding) -> torch.Tensor:
    out = torch.empty(blocks.shape, dtype=torch.bfloat16, device=blocks.device)
    pieces = max(1, blocks.numel() // _PIECE)
    for source, target in zip(blocks.chunk(pieces), out.chunk(pieces), strict=True):
        target.copy_(rounding(source, mantissa_bits))
    return out


def _round(blocks: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """Blocks [N, 16], rounded, bfloat16."""
    wide = blocks.float()
    if wide.numel() <= _FEW:
        top = (wide.view(torch.int32) & _EXPONENT).amax(1, keepdim=True)
    else:  # pooling is the fastest maximum over 16 neighbours that torch has
        rows = 64 if wide.shape[0] % 64 == 0 else 1
        largest = F.max_pool1d(wide.abs().view(rows, 1, -1), BLOCK)
        top = (largest.view(torch.int32) & _EXPONENT).view(-1, 1)
    return _in_units(wide, top, mantissa_bits, lose_bits=False).to(torch.bfloat16)


def _in_units(
    wide: torch.Tensor, top: torch.Tensor, mantissa_bits: int, *, lose_bits: bool
) -> torch.Tensor:
    """Values divided by their block's last mantissa bit, rounded, limited, multiplied again.

    `top` is the largest exponent of each block, in place. `lose_bits`: first cut off those that
    the alignment of 24 bits shifts out.
    """
    top = top.clamp_(min=_SMALLEST << _PLACE)
    below = mantissa_bits - 1
    units = wide * ((254 + below << _PLACE) - top).view(torch.float32)
    if lose_bits:
        kept = 2.0 ** (24 - mantissa_bits)
        units = units.mul_(kept).trunc_().mul_(1 / kept)
    most = 2**mantissa_bits - 1
    return units.round_().clamp_(-most, most).mul_((top - (below << _PLACE)).view(torch.float32))


def _round_exactly(blocks: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """Blocks [N, 16, ...] bit for bit as the wheel rounds them."""
    lose_bits = blocks.dtype is not torch.bfloat16  # that has too few for any to be shifted out
    wide = blocks.float()
    top = (wide.view(torch.int32) & _EXPONENT).amax(1, keepdim=True)
    careful = (top < _SMALLEST << _PLACE) | (top > _LARGEST << _PLACE)
    if bool((careful & (top != 0)).any()):
        return _round_integers(wide, mantissa_bits)
    rounded = _in_units(wide, top, mantissa_bits, lose_bits=lose_bits)
    return rounded.add_(0.0).to(torch.bfloat16)  # no negative zeros


def _round_integers(blocks: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """The rule in integers: any exponent, infinities and NaN (255) included."""
    bits = blocks.contiguous().view(torch.int32)
    negative, exponent, fraction = bits < 0, (bits >> 23) & 0xFF, bits & 0x7FFFFF
    shared = exponent.amax(dim=1, keepdim=True)
    mantissa = (fraction | (1 << 23)) >> (shared - exponent).clamp(max=31)
    shift = 24 - mantissa_bits
    rest, half = mantissa & ((1 << shift) - 1), 1 << (shift - 1)
    mantissa = mantissa >> shift
    mantissa = mantissa + ((rest > half) | ((rest == half) & (mantissa & 1 == 1)))
    mantissa = mantissa.clamp(max=(1 << mantissa_bits) - 1)
    mantissa = torch.where(exponent == 0, 0, mantissa)
    # normalise by hand, so that exponent 255 comes out as the wheel writes it
    top = torch.floor(torch.log2(mantissa.clamp(min=1).float())).int()
    out = ((shared - (mantissa_bits - 1 - top)) << 23) | ((mantissa << (23 - top)) & 0x7FFFFF)
    out = torch.where(negative, out | torch.iinfo(torch.int32).min, out)
    out = torch.where(mantissa == 0, 0, out)
    # by bits: a conversion would give every NaN the same ones
    return (out >> 16).to(torch.int16).view(torch.bfloat16)


def keep_significant_bits(x: torch.Tensor, bits: int) -> torch.Tensor:
    """`x` (bfloat16 or float32) truncated to `bits` significant bits, hidden bit included."""
    if x.dtype is torch.bfloat16:
        if bits >= 8:
            return x
        x = contiguous(x)
        if can_run(x):
            out = torch.empty_like(x)
            call("cut_bits", x=x, out=out, count=x.numel(), mask=seen_mask(bits))
            return out
        return (x.view(torch.int16) & -(1 << (8 - bits))).view(torch.bfloat16)
    return x if bits >= 24 else (x.view(torch.int32) & -(1 << (24 - bits))).view(torch.float32)


def seen_mask(bits: int) -> int:
    """Mask of the bits of a bfloat16 that a multiplier of `bits` significant bits sees."""
    return 0xFFFF & ~((1 << (8 - bits)) - 1)


def round_blocks(blocks: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """Blocks [N, 16] of bfloat16 or float32 rounded to `mantissa_bits`, bfloat16."""
    out = torch.empty(blocks.shape, dtype=torch.bfloat16)
    is_wide = blocks.dtype is torch.float32
    assert is_wide or blocks.dtype is torch.bfloat16, blocks.dtype
    call(
        "round_blocks", x=blocks, out=out, blocks=blocks.shape[0], mantissa_bits=mantissa_bits,
        is_wide=is_wide,
    )  # fmt: skip
    return out


def round_columns(columns: torch.Tensor, mantissa_bits: int) -> torch.Tensor | None:
    """Blocks down the columns [N, 16, W] as the host's conversion rounds them, bfloat16.

    None where it takes more care: odd types or widths, exponents near the ends of their range.
    """
    groups, _, width = columns.shape
    is_wide = columns.dtype is torch.float32
    if not (is_wide or columns.dtype is torch.bfloat16) or width % LANES or not can_run(columns):
        return None
    out = columns.new_empty(columns.shape, dtype=torch.bfloat16)
    native.want_large_pages(out)
    done = call(
        "round_columns", x=columns, out=out, groups=groups, width=width,
        mantissa_bits=mantissa_bits, is_wide=is_wide,
    )  # fmt: skip
    return out if done else None


def finish(data: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """A result as its output format holds it."""
    if dtype.is_block:
        return round_to(data, dtype)
    return data if data.dtype is dtype.carrier else data.to(dtype.carrier)
