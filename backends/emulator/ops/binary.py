"""Sums and products, with activations around them.

Block and bfloat16 operands meet in bfloat16, as in the accumulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from backends.emulator.api.configs import UnaryOpType, UnaryWithParam
from backends.emulator.api.types import (
    TILE,
    DataType,
    Layout,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
    num_cores_to_corerangeset,
    padded,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, fatal, launch, op, require
from backends.emulator.loops.call import call, can_run
from backends.emulator.numerics.formats import BLOCK, MANTISSA_BITS, ROUNDED, finish
from backends.emulator.numerics.sums import add_integers

Activations = Sequence[UnaryOpType | UnaryWithParam]

_UNARY: dict[UnaryOpType, Callable[[torch.Tensor], torch.Tensor]] = {
    UnaryOpType.SILU: F.silu,
    UnaryOpType.RELU: torch.relu,
    UnaryOpType.GELU: F.gelu,
    UnaryOpType.EXP: torch.exp,
    UnaryOpType.SIGMOID: torch.sigmoid,
    UnaryOpType.RECIP: torch.reciprocal,
}


def _functions(name: str, kinds: Activations | None) -> list[Callable[..., torch.Tensor]]:
    found = []
    for kind in kinds or ():
        kind = getattr(kind, "op_type", kind)
        if not isinstance(kind, UnaryOpType):
            raise TypeError(
                f"ttnn.{name}(): incompatible function arguments: activations are UnaryOpType "
                f"values, got {kind!r}"
            )
        found.append(_UNARY[kind])
    return found


@op("add")
def add(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor | float,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    output_tensor: Tensor | None = None,
    activations: Activations | None = None,
    input_tensor_a_activations: Activations | None = None,
    input_tensor_b_activations: Activations | None = None,
) -> Tensor:
    return _binary("add", torch.add, **locals())


@op("multiply")
def multiply(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor | float,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    output_tensor: Tensor | None = None,
    activations: Activations | None = None,
    input_tensor_a_activations: Activations | None = None,
    input_tensor_b_activations: Activations | None = None,
) -> Tensor:
    return _binary("multiply", torch.mul, **locals())


op("mul")(multiply)


def _binary(
    name: str,
    function: Callable[..., torch.Tensor],
    *,
    input_tensor_a: Tensor,
    input_tensor_b: Tensor | float,
    dtype: DataType | None,
    memory_config: MemoryConfig | None,
    output_tensor: Tensor | None,
    activations: Activations | None,
    input_tensor_a_activations: Activations | None,
    input_tensor_b_activations: Activations | None,
) -> Tensor:
    a, b = input_tensor_a, input_tensor_b
    dtype = dtype or a.dtype
    before_a = _functions(name, input_tensor_a_activations)
    before_b = _functions(name, input_tensor_b_activations)
    after = _functions(name, activations)
    inputs = [a]
    shape, layout = a.dims, a.layout
    if isinstance(b, Tensor):
        inputs.append(b)
        shape = _checked_shape(name, a, b)
        layout = Layout.TILE if Layout.TILE in (a.layout, b.layout) else Layout.ROW_MAJOR
    number = None if isinstance(b, Tensor) else b  # a trace that held `b` would keep its memory
    out_dtype = dtype if output_tensor is None else output_tensor.dtype
    whole = shape == a.dims and shape[-1] % BLOCK == 0
    loop = _loop_for(function, before_a, [*before_b, *after], out_dtype) if whole else None
    wide = dtype is DataType.FLOAT32 or any(t.dtype is DataType.FLOAT32 for t in inputs)

    def compute(x: torch.Tensor, *other: torch.Tensor) -> torch.Tensor:
        y = other[0] if other else number
        if loop is not None and other and x.shape == y.shape and _in_c(x, y, out_dtype):
            return loop(x, y, MANTISSA_BITS.get(out_dtype, 0))
        if wide:
            x, y = x.float(), y.float() if other else y
        for activation in before_a:
            x = activation(x)
        for activation in before_b:
            y = activation(y)
        if other and x.dim() != y.dim():
            x, y = _same_rank(x, y)
        out = function(x, y)
        for activation in after:
            out = activation(out)
        return finish(out, out_dtype)

    return launch(
        name,
        inputs,
        [Out(shape, dtype, layout, _memory(inputs, shape, memory_config))],
        compute,
        into=output_tensor,
        exact=True,
        attributes={
            "activations": _names(activations),
            "input_tensor_a_activations": _names(input_tensor_a_activations),
            "input_tensor_b_activations": _names(input_tensor_b_activations),
        },
    )


def _loop_for(
    function: Callable[..., torch.Tensor], before_a: list[Any], others: list[Any], out: DataType
) -> Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] | None:
    """The C loop for a sum, or for the gated product of feed-forward blocks."""
    plain = function is torch.add and not (before_a or others)
    if out in (DataType.INT32, DataType.UINT32):
        return (lambda x, y, _: add_integers(x, y)) if plain else None
    if out not in ROUNDED:
        return None
    if function is torch.mul and before_a == [F.silu] and not others:
        return silu_multiply
    return _sum if plain else None


def _in_c(x: torch.Tensor, y: torch.Tensor, out: DataType) -> bool:
    return x.dtype is y.dtype is out.carrier and can_run(x, y)


def _names(kinds: Activations | None) -> list[str] | None:
    return [getattr(kind, "op_type", kind).name for kind in kinds] if kinds else None


def _checked_shape(name: str, a: Tensor, b: Tensor) -> tuple[int, ...]:
    """The broadcast shape; integers mix with their own kind only."""
    mixed = a.dtype is not b.dtype and not (a.dtype.is_float and b.dtype.is_float)
    if mixed and not (name == "multiply" and a.dtype.is_float):
        fatal(
            f"Mixed dtype is not supported for binary operation {name.upper()}, dtype A: "
            f"DataType::{a.dtype.name}, dtype B: DataType::{b.dtype.name}"
        )
    if a.dims == b.dims:
        return a.dims
    try:
        return np.broadcast_shapes(a.dims, b.dims)  # torch's own loads sympy first
    except ValueError:
        fatal(f"Invalid subtile broadcast type: {a.shape} and {b.shape}")


def _same_rank(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mesh-batched operands with their logical dims aligned to the right."""
    rank = max(x.dim(), y.dim())
    x, y = (t.reshape(*t.shape[:2], *(1,) * (rank - t.dim()), *t.shape[2:]) for t in (x, y))
    return x, y


def _memory(
    inputs: Sequence[Tensor], shape: tuple[int, ...], wanted: MemoryConfig | None
) -> MemoryConfig:
    """Without one asked for, the most widely sharded operand's, else the first's."""
    if wanted is not None and not (wanted.is_sharded() and wanted.shard_spec is None):
        return wanted
    sharded = [t.memory_config() for t in inputs if t.is_sharded() and t.dims == shape]
    if sharded:
        return max(sharded, key=lambda memory: memory.shard_spec.num_cores())  # type: ignore[union-attr]
    if wanted is None:
        return inputs[0].memory_config()
    require(
        wanted.memory_layout is TensorMemoryLayout.WIDTH_SHARDED,
        f"{wanted.memory_layout} without a shard spec is not emulated",
    )
    whole = padded(shape, Layout.TILE)
    grid = inputs[0].device().compute_with_storage_grid_size()  # type: ignore[union-attr]
    tiles, height = whole[-1] // TILE, torch.Size(whole[:-1]).numel()
    width = -(-tiles // (grid.x * grid.y))
    cores = num_cores_to_corerangeset(-(-tiles // width), grid, row_wise=True)
    spec = ShardSpec(cores, (height, width * TILE))
    return MemoryConfig(wanted.memory_layout, wanted.buffer_type, spec)


def silu_multiply(x: torch.Tensor, y: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """silu(x) y of bfloat16 in whole blocks; `mantissa_bits` of the block format, 0: bfloat16."""
    out, width = torch.empty_like(x), x.shape[-1]
    call(
        "silu_multiply", x=x, y=y, out=out, rows=x.numel() // width, across=width // BLOCK,
        mantissa_bits=mantissa_bits,
    )  # fmt: skip
    return out


def _sum(x: torch.Tensor, y: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """x + y of bfloat16 in whole blocks, rounded to bfloat16 or to blocks of `mantissa_bits`."""
    out, blocks = torch.empty_like(x), x.numel() // BLOCK
    call("add_blocks", x=x, y=y, out=out, blocks=blocks, mantissa_bits=mantissa_bits)
    return out
