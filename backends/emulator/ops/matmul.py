"""matmul and linear, with everything the matrix unit does to the numbers.

Fidelity limits the bits of both operands (numerics/fidelity.py); without fp32_dest_acc_en the
result passes through a bfloat16 accumulator. Partial sums between blocks of K are not rounded here,
so narrow accumulation is a little better than on silicon. Next: rules/matmul.py says where results
lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from backends.emulator.api.configs import (
    MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig,
    UnaryOpType,
    WormholeComputeKernelConfig,
)
from backends.emulator.api.types import DataType, Layout, MathFidelity, MemoryConfig, padded
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, fatal, launch, op, require
from backends.emulator.numerics import fidelity as multiplier
from backends.emulator.numerics.formats import finish
from backends.emulator.numerics.products import Rounding, constant_product, free_product, picking
from backends.emulator.rules.matmul import (
    check_operands,
    output_layout,
    output_memory,
    output_shape,
)
from backends.work import product_flops

_ACTIVATIONS = {"silu": F.silu, "relu": torch.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid}
_DEFAULT_KERNEL = WormholeComputeKernelConfig(math_fidelity=MathFidelity.HiFi2)


@op("linear")
def linear(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor,
    *,
    bias: Tensor | None = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    program_config: Any = None,
    activation: str | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    core_grid: Any = None,
    global_cb: Any = None,
) -> Tensor:
    return _matmul("linear", **locals())


@op("matmul")
def matmul(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    program_config: Any = None,
    activation: str | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    core_grid: Any = None,
    global_cb: Any = None,
) -> Tensor:
    return _matmul("matmul", bias=None, **locals())


def _matmul(
    name: str,
    *,
    input_tensor_a: Tensor,
    input_tensor_b: Tensor,
    bias: Tensor | None,
    transpose_a: bool,
    transpose_b: bool,
    memory_config: MemoryConfig | None,
    dtype: DataType | None,
    program_config: Any,
    activation: str | None,
    compute_kernel_config: WormholeComputeKernelConfig | None,
    core_grid: Any,
    global_cb: Any,
) -> Tensor:
    a, b = input_tensor_a, input_tensor_b
    check_operands(a, b, bias)
    shape, inner = output_shape(a, b, transpose_a, transpose_b)
    memory = output_memory(a, b, shape, inner, program_config, memory_config)
    dtype = dtype or a.dtype
    kernel = compute_kernel_config or _DEFAULT_KERNEL
    act = _activation(activation, program_config)
    multiply = multiplication(a, b, kernel.math_fidelity, transpose_a, transpose_b)
    wide = kernel.fp32_dest_acc_en
    rounding = Rounding(dtype, wide)

    def compute(x: torch.Tensor, w: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if bias is None and act is None:
            return multiply(x, w, rounding)
        out = multiply(x, w, None)
        if rest:
            out = out + rest[0]
        if not wide:
            out = out.to(torch.bfloat16)
        return finish(out if act is None else act(out.float()), dtype)

    rows = math.prod(padded(shape, Layout.TILE)[:-1])
    return launch(
        name,
        [a, b] if bias is None else [a, b, bias],
        [Out(shape, dtype, output_layout(name, program_config), memory)],
        compute,
        exact=True,  # rounded by the product, on its way out
        flops=product_flops(rows, inner, shape[-1]),
        # what a global buffer brings was read by the prefetcher, whose bytes they are
        dram_bytes=_streamed(b, program_config) if global_cb is None else 0,
        attributes={
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
            "activation": activation,
            "core_grid": core_grid,
            "transpose_a": transpose_a or None,
            "transpose_b": transpose_b or None,
        },
    )


def _streamed(b: Tensor, program_config: Any) -> int | None:
    """DRAM bytes of a product that streams its weight bank by bank, padding and all."""
    by_bank = isinstance(program_config, MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig)
    return b.spec().sharded_bytes if by_bank and b.in_dram() else None


def _activation(name: str | None, program_config: Any) -> Callable[..., torch.Tensor] | None:
    fused = getattr(program_config, "fused_activation", None)
    if fused is not None:
        kind: UnaryOpType = getattr(fused, "op_type", fused)
        name = kind.name.lower()
    if name is None:
        return None
    require(name in _ACTIVATIONS, f"Unknown unary op: {name}")
    return _ACTIVATIONS[name]


def multiplication(
    a: Tensor,
    b: Tensor,
    fidelity: MathFidelity,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Callable[[torch.Tensor, torch.Tensor, Rounding | None], torch.Tensor]:
    """The product of mesh-batched data as the multiplier computes it at a fidelity.

    Sums are rounded, or float32 where no rounding is given.
    """
    a_bits = multiplier.in0_bits(a.dtype, fidelity)
    b_bits = multiplier.in1_bits(b.dtype, fidelity)
    # a trace keeps what is made here: were it to hold tensors, their L1 would never be free again
    a_forms, b_forms = a.forms, b.forms
    is_weight = b_forms is not None and all(size == 1 for size in b.dims[:-2])

    def product(
        x: torch.Tensor, w: torch.Tensor, bits: int | None, rounding: Rounding | None
    ) -> torch.Tensor:
        if is_weight:
            return constant_product(x, b_forms, w, transpose_b, bits, rounding)
        w = multiplier.cut(w, bits)
        sums = free_product(x, w.mT if transpose_b else w)
        return sums if rounding is None else rounding(sums)

    def whole(x: torch.Tensor, w: torch.Tensor, rounding: Rounding | None) -> torch.Tensor:
        if a_bits is None and rounding and not (is_weight or transpose_a or transpose_b):
            pick = picking(a_forms, x, w)
            if pick is not None:
                return rounding(pick(multiplier.cut(w, b_bits)))
        x = multiplier.cut(x.mT if transpose_a else x, a_bits)
        return product(x, w, b_bits, rounding)

    def split(x: torch.Tensor, w: torch.Tensor, rounding: Rounding | None) -> torch.Tensor:
        """HiFi3: all of in1 with the high bits of in0, and its high bits with in0's low bits."""
        x = x.mT if transpose_a else x
        high = multiplier.cut(x, multiplier.IN0_PASS_BITS)
        first = product(high, w, b_bits, None)
        sums = first + product(x - high, w, multiplier.IN1_PASS_BITS, None)
        return sums if rounding is None else rounding(sums)

    if transpose_a and a.dtype is DataType.FLOAT32:
        fatal("transpose_a of float32 is not emulated: transpose the tensor first")
    return split if multiplier.is_split(a.dtype, b.dtype, fidelity) else whole
