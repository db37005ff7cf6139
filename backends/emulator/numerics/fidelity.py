"""What the matrix unit's multiplier sees of its operands.

One pass multiplies 5 significant bits of source A (in1, the weights) with 7 of source B (in0, the
activations), hidden bit included; bits are cut off, not rounded. LoFi is one pass; HiFi2 adds the
low bits of in1, HiFi3 the low bits of in0 against the high bits of in1, HiFi4 the low bits of
both. float32 operands arrive as TF32, of whose 11 bits source A uses 10.
Source: Tenstorrent's ISA documentation, SrcASrcB.md (fidelity phases) and MVMUL.md.
"""

from __future__ import annotations

import torch

from backends.emulator.api.types import DataType, MathFidelity
from backends.emulator.numerics.formats import keep_significant_bits

IN1_PASS_BITS, IN0_PASS_BITS = 5, 7
_SIGNIFICANT_BITS = {
    DataType.BFLOAT16: 8,
    DataType.BFLOAT8_B: 7,
    DataType.BFLOAT4_B: 3,
    DataType.FLOAT32: 11,  # TF32
}
_TF32_IN1_BITS = 10


def in0_bits(dtype: DataType, fidelity: MathFidelity) -> int | None:
    """Significant bits that an activation is cut to; None: it is used as it is."""
    bits = _SIGNIFICANT_BITS[dtype]
    if fidelity in (MathFidelity.LoFi, MathFidelity.HiFi2):
        bits = min(bits, IN0_PASS_BITS)
    return bits if bits < _SIGNIFICANT_BITS[dtype] or dtype is DataType.FLOAT32 else None


def in1_bits(dtype: DataType, fidelity: MathFidelity) -> int | None:
    """Significant bits that a weight is cut to; None: it is used as it is."""
    bits = _SIGNIFICANT_BITS[dtype]
    if fidelity is MathFidelity.LoFi:
        bits = min(bits, IN1_PASS_BITS)
    if dtype is DataType.FLOAT32:
        return min(bits, _TF32_IN1_BITS)
    return bits if bits < _SIGNIFICANT_BITS[dtype] else None


def is_split(in0: DataType, in1: DataType, fidelity: MathFidelity) -> bool:
    """Whether HiFi3 leaves out the product of both operands' low bits (and there is one)."""
    return (
        fidelity is MathFidelity.HiFi3
        and _SIGNIFICANT_BITS[in0] > IN0_PASS_BITS
        and _SIGNIFICANT_BITS[in1] > IN1_PASS_BITS
    )


def cut(x: torch.Tensor, bits: int | None) -> torch.Tensor:
    """`x` with the bits the multiplier does not see set to zero."""
    return x if bits is None else keep_significant_bits(x, bits)
