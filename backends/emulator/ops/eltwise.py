"""Elementwise ops, computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from backends.emulator.launch import Out, launch, memory_or_default, op, require
from backends.emulator.tensor import Tensor
from backends.emulator.types import DataType, MemoryConfig, UnaryOpType

_UNARY = {
    UnaryOpType.SILU: F.silu,
    UnaryOpType.RELU: torch.relu,
    UnaryOpType.GELU: F.gelu,
    UnaryOpType.EXP: torch.exp,
    UnaryOpType.SIGMOID: torch.sigmoid,
    UnaryOpType.RECIP: torch.reciprocal,
}


def _binary(
    name: str,
    function: Any,
    a: Tensor,
    b: Tensor | float,
    dtype: DataType | None,
    memory_config: MemoryConfig | None,
    activations: Sequence[UnaryOpType] | None,
) -> Tensor:
    dtype = dtype or a.dtype
    before = [_UNARY[kind] for kind in activations or ()]
    memory = memory_or_default(memory_config, a)

    def compute(x: torch.Tensor, *other: torch.Tensor) -> torch.Tensor:
        for activation in before:
            x = activation(x.float())
        y = other[0] if other else b
        # torch computes a bfloat16 pair in float32 and rounds once, as the packer does
        return function(x, y)

    if not isinstance(b, Tensor):
        shape, inputs = tuple(a.shape), [a]
    else:
        shape, inputs = tuple(torch.broadcast_shapes(tuple(a.shape), tuple(b.shape))), [a, b]
        require(
            a.dtype.is_float == b.dtype.is_float,
            f"{name}: operands of {a.dtype.name} and {b.dtype.name} do not mix",
        )
    return launch(
        name,
        inputs,
        [Out(shape, dtype, a.layout, memory)],
        compute,
        attributes={"input_tensor_a_activations": [kind.name for kind in activations or ()] or None},
    )


@op("add")
def add(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor | float,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    input_tensor_a_activations: Sequence[UnaryOpType] | None = None,
) -> Tensor:
    return _binary(
        "add", torch.add, input_tensor_a, input_tensor_b, dtype, memory_config,
        input_tensor_a_activations,
    )  # fmt: skip


@op("multiply")
def multiply(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor | float,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    input_tensor_a_activations: Sequence[UnaryOpType] | None = None,
) -> Tensor:
    return _binary(
        "multiply", torch.mul, input_tensor_a, input_tensor_b, dtype, memory_config,
        input_tensor_a_activations,
    )  # fmt: skip


op("mul")(multiply)


@op("silu")
def silu(input_tensor: Tensor, *, memory_config: MemoryConfig | None = None) -> Tensor:
    out = Out(
        tuple(input_tensor.shape),
        input_tensor.dtype,
        input_tensor.layout,
        memory_or_default(memory_config, input_tensor),
    )
    return launch("silu", [input_tensor], [out], F.silu)


@op("typecast")
def typecast(
    input_tensor: Tensor, dtype: DataType, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    if dtype is input_tensor.dtype and memory_config in (None, input_tensor.memory_config()):
        return input_tensor
    out = Out(
        tuple(input_tensor.shape),
        dtype,
        input_tensor.layout,
        memory_or_default(memory_config, input_tensor),
    )
    return launch("typecast", [input_tensor], [out], lambda x: x)


@op("plus_one")
def plus_one(
    input_tensor: Tensor, *, sub_core_grids: Any = None, skip_negative_entries: bool = False
) -> Tensor:
    """Count up in place; negative entries (idle users) may stay as they are."""
    require(
        input_tensor.dtype in (DataType.INT32, DataType.UINT32),
        "Input tensor must be INT32 or UINT32 for plus_one",
    )

    def compute(x: torch.Tensor) -> None:
        if skip_negative_entries:
            x += (x >= 0).to(x.dtype)
        else:
            x += 1

    return launch("plus_one", [input_tensor], [], compute, into=input_tensor)
