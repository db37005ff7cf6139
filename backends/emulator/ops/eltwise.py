"""Ops on one tensor, element by element."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from backends.emulator.api.types import DataType, Layout, MemoryConfig
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, fatal, launch, memory_or_default, op, require, same
from backends.emulator.numerics.sums import add_integers


@op("silu")
def silu(
    input_tensor: Tensor,
    *,
    memory_config: MemoryConfig | None = None,
    output_tensor: Tensor | None = None,
) -> Tensor:
    x = input_tensor
    require(
        x.dtype.is_float,
        f"Unary: UnaryOpType::SILU does not support integer input dtype DataType::{x.dtype.name}",
    )
    out = Out(x.dims, x.dtype, x.layout, memory_or_default(memory_config, x))
    return launch("silu", [x], [out], F.silu, into=output_tensor)


@op("typecast")
def typecast(
    input_tensor: Tensor, dtype: DataType, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    x = input_tensor
    memory = memory_or_default(memory_config, x)
    if memory.memory_layout is not x.memory_config().memory_layout:
        fatal(
            "Typecast operation requires Input and Output memory layout to match. Input layout: "
            f"TensorMemoryLayout::{x.memory_config().memory_layout.name}, Output layout: "
            f"TensorMemoryLayout::{memory.memory_layout.name}"
        )
    return launch("typecast", [x], [Out(x.dims, dtype, x.layout, memory)], same, host=True)


@op("plus_one")
def plus_one(
    input_tensor: Tensor, sub_core_grids: Any = None, skip_negative_entries: bool = False
) -> Tensor:
    """Count up; negative entries (idle users) may stay as they are."""
    require(
        input_tensor.dtype in (DataType.INT32, DataType.UINT32),
        "Only INT32 and UINT32 is supported for inputs!",
    )
    require(
        input_tensor.layout is Layout.ROW_MAJOR, "Only ROW_MAJOR layout is supported for inputs!"
    )

    def compute(x: torch.Tensor) -> torch.Tensor:
        return add_integers(x, None, skips_negative=skip_negative_entries)

    return launch(
        "plus_one",
        [input_tensor],
        [],
        compute,
        into=input_tensor,
        attributes={"skip_negative_entries": skip_negative_entries or None},
    )
