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
# blocks whose largest value lies outside take the slow exact path
_SMALLEST, _LARGEST = 2.0**-90, 2.0**90
_PIECE = 1 << 18  # elements of a large weight rounded at once: stays in a core's cache


def to_format(x: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """`x` rounded to `dtype`, in the torch type that carries it (see DataType.carrier).

    A transposed view (weights) comes back as a transposed view.
    """
    if not dtype.is_block:
        return x.to(dtype.carrier)
    bits = MANTISSA_BITS[dtype]
    if x.dim() > 1 and x.stride(-1) != 1 and x.mT.is_contiguous() and x.shape[-1] % BLOCK == 0:
        return _round_rows(x.mT, bits).mT
    return round_blocks(x, bits).to(torch.bfloat16)


def round_blocks(x: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """Values of `x` [..., W] as a block format stores them, float32."""
    width = x.shape[-1]
    if x.numel() == 0:
        return x.float()
    padded = F.pad(x, (0, -width % BLOCK)) if width % BLOCK else x
    blocks = padded.reshape(-1, BLOCK)
    return _round(blocks, 1, mantissa_bits).reshape(padded.shape)[..., :width]


def _round_rows(x: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """Blocks of 16 rows of a contiguous `x` [..., N, K], a cache-sized piece at a time."""
    out = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    blocks = x.reshape(-1, BLOCK, x.shape[-1])
    rounded = out.view(blocks.shape)
    pieces = max(1, blocks.numel() // _PIECE)
    for source, target in zip(blocks.chunk(pieces), rounded.chunk(pieces), strict=True):
        target.copy_(_round(source, 1, mantissa_bits))
    return out


def _round(blocks: torch.Tensor, dim: int, mantissa_bits: int) -> torch.Tensor:
    """Round with one exponent along `dim` (of size 16)."""
    exact_input = blocks.dtype is torch.bfloat16  # too few bits for any to be shifted out
    blocks = blocks.float()
    low, high = torch.aminmax(blocks, dim=dim, keepdim=True)
    largest = torch.maximum(high, -low)
    # a comparison with NaN is false; all-zero blocks are fine on the fast path
    inside = ((largest >= _SMALLEST) & (largest <= _LARGEST)) | (largest == 0)
    if bool(inside.all()):
        return _round_fast(blocks, largest, mantissa_bits, exact_input)
    return _round_exact(blocks, dim, mantissa_bits)


def _round_fast(
    blocks: torch.Tensor, largest: torch.Tensor, mantissa_bits: int, exact_input: bool
) -> torch.Tensor:
    """Adding and subtracting 1.5 * 2^23 steps leaves a multiple of the step, rounded to even."""
    exponent_bits = largest.clamp(min=_SMALLEST).view(torch.int32) & 0x7F800000
    power = exponent_bits.view(torch.float32)  # 2 ** exponent of the largest value
    step = power * 2.0 ** (1 - mantissa_bits)
    if not exact_input:
        unit = power * 2.0**-23  # the last bit that survives alignment
        blocks = (blocks / unit).trunc_().mul_(unit)
    magic = step * (1.5 * 2**23)
    limit = step * (2**mantissa_bits - 1)
    rounded = (blocks + magic).sub_(magic)
    return torch.minimum(torch.maximum(rounded, -limit, out=rounded), limit, out=rounded)


def _round_exact(blocks: torch.Tensor, dim: int, mantissa_bits: int) -> torch.Tensor:
    """The rule in integers: any exponent, infinities and NaN (exponent 255) included."""
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
    return torch.where(mantissa == 0, 0, out).view(torch.float32)


def keep_significant_bits(x: torch.Tensor, bits: int) -> torch.Tensor:
    """`x` (bfloat16 or float32) truncated to `bits` significant bits, hidden bit included."""
    if x.dtype is torch.bfloat16:
        return x if bits >= 8 else (x.view(torch.int16) & -(1 << (8 - bits))).view(torch.bfloat16)
    return x if bits >= 24 else (x.view(torch.int32) & -(1 << (24 - bits))).view(torch.float32)
