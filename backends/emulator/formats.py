"""Rounding to TT-NN's number formats, bit for bit what the wheel's host conversion gives.

bfloat8_b and bfloat4_b: 16 consecutive values of a row share the largest exponent; each keeps a
sign and 7 (3) bits of mantissa, hidden bit included. Bits that the alignment shifts out are lost
before rounding, rounding is to nearest even, the largest mantissa saturates, zeros are positive.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from backends.emulator.types import DataType

BLOCK = 16  # values that share one exponent
MANTISSA_BITS = {DataType.BFLOAT8_B: 7, DataType.BFLOAT4_B: 3}
# blocks whose largest value lies outside take the exact integer path
_SMALLEST, _LARGEST = 2.0**-90, 2.0**90
_EXPONENT = 0x7F800000  # the exponent's bits of a float32
_PIECE = 1 << 17  # elements rounded at once: the intermediates stay in a core's cache


def to_format(x: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """Host values `x` exactly as the wheel converts them to `dtype` (in its carrier type).

    A transposed view (weights) comes back as a transposed view.
    """
    if not dtype.is_block:
        return x.to(dtype.carrier)
    bits = MANTISSA_BITS[dtype]
    if x.dim() > 1 and x.stride(-1) != 1 and x.mT.is_contiguous() and x.shape[-1] % BLOCK == 0:
        columns = x.mT.reshape(-1, BLOCK, x.shape[-2])
        return _by_piece(columns, 1, bits).reshape(x.mT.shape).mT
    blocks, width = _blocks(x)
    rounded = _by_piece(blocks, 1, bits)
    return rounded.reshape(*x.shape[:-1], -1)[..., :width]


def _blocks(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`x` as [blocks, 16], its rows padded with zeros, and its width."""
    width = x.shape[-1] if x.dim() else 1
    x = x.reshape(*x.shape[:-1], width)
    if width % BLOCK:
        x = F.pad(x, (0, -width % BLOCK))
    return x.reshape(-1, BLOCK), width


def _by_piece(blocks: torch.Tensor, dim: int, mantissa_bits: int) -> torch.Tensor:
    out = torch.empty(blocks.shape, dtype=torch.bfloat16, device=blocks.device)
    pieces = max(1, blocks.numel() // _PIECE)
    for source, target in zip(blocks.chunk(pieces), out.chunk(pieces), strict=True):
        target.copy_(_round(source, dim, mantissa_bits))
    return out


def _round(blocks: torch.Tensor, dim: int, mantissa_bits: int) -> torch.Tensor:
    """Round with one exponent along `dim` (of size 16)."""
    exact_input = blocks.dtype is torch.bfloat16  # too few bits for any to be shifted out
    blocks = blocks.float()
    low, high = torch.aminmax(blocks, dim=dim, keepdim=True)
    largest = torch.maximum(high, -low)
    # a comparison with NaN is false; all-zero blocks are fine on the fast path
    inside = ((largest >= _SMALLEST) & (largest <= _LARGEST)) | (largest == 0)
    if not bool(inside.all()):
        return _round_exact(blocks, dim, mantissa_bits)
    if not exact_input:
        unit = _power(largest.clamp(min=_SMALLEST)).mul_(2.0**-23)  # last bit that survives
        blocks = (blocks / unit).trunc_().mul_(unit)
    return _round_near(blocks, _power(largest), mantissa_bits).add_(0.0)  # no negative zeros


def _power(largest: torch.Tensor) -> torch.Tensor:
    """2 ** exponent of positive float32 values; 0 for 0."""
    return (largest.view(torch.int32) & _EXPONENT).view(torch.float32)


def _round_near(blocks: torch.Tensor, power: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """Adding and subtracting 1.5 * 2^23 steps leaves a multiple of the step, rounded to even."""
    step = 2.0 ** (1 - mantissa_bits)
    magic = power * (step * 1.5 * 2**23)
    limit = power * (2 - step)
    rounded = (blocks + magic).sub_(magic)
    rounded = torch.minimum(rounded, limit, out=rounded)
    return torch.maximum(rounded, limit.neg_(), out=rounded)


def _round_exact(blocks: torch.Tensor, dim: int, mantissa_bits: int) -> torch.Tensor:
    """The rule in integers, bfloat16: any exponent, infinities and NaN (255) included."""
    bits = blocks.contiguous().view(torch.int32)
    negative, exponent, fraction = bits < 0, (bits >> 23) & 0xFF, bits & 0x7FFFFF
    shared = exponent.amax(dim=dim, keepdim=True)
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


def round_to(x: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """Results of device ops in a block format, bfloat16; fast, for values below 2^100.

    Unlike the host's, this conversion rounds float32 results as they are: no bits are lost first.
    """
    bits = MANTISSA_BITS[dtype]
    width = x.shape[-1]
    if width % BLOCK:
        return round_to(F.pad(x, (0, -width % BLOCK)), dtype)[..., :width]
    rows = x.contiguous().view(-1, 1, width)
    if rows.numel() <= _PIECE or x.is_cuda:
        return _round_rows(rows, bits).to(torch.bfloat16).view(x.shape)
    out = torch.empty(rows.shape, dtype=torch.bfloat16)
    pieces = rows.numel() // _PIECE
    for source, target in zip(rows.chunk(pieces), out.chunk(pieces), strict=True):
        target.view(-1, BLOCK).copy_(_round_rows(source, bits))
    return out.view(x.shape)


def _round_rows(rows: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """Blocks [N, 16] of rows [R, 1, W], rounded, float32."""
    wide = rows.float()
    # pooling is the fastest maximum over 16 neighbours that torch has
    largest = F.max_pool1d(wide.abs(), BLOCK)
    return _round_near(wide.view(-1, BLOCK), _power(largest).view(-1, 1), mantissa_bits)


def keep_significant_bits(x: torch.Tensor, bits: int) -> torch.Tensor:
    """`x` (bfloat16 or float32) truncated to `bits` significant bits, hidden bit included."""
    if x.dtype is torch.bfloat16:
        return x if bits >= 8 else (x.view(torch.int16) & -(1 << (8 - bits))).view(torch.bfloat16)
    return x if bits >= 24 else (x.view(torch.int32) & -(1 << (24 - bits))).view(torch.float32)
