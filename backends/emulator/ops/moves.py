"""Moves between memories and layouts: values stay as they are, so nothing is computed."""

from __future__ import annotations

from typing import Any

from backends.emulator.api.types import (
    DRAM_MEMORY_CONFIG,
    TILE,
    DataType,
    Layout,
    MemoryConfig,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import (
    Out,
    launch,
    memory_or_default,
    op,
    require,
    same,
    unchanged,
)


@op("to_memory_config")
def to_memory_config(
    tensor: Tensor, memory_config: MemoryConfig, dtype: DataType | None = None
) -> Tensor:
    """Another placement; where the tensor lies there already, it comes back as it is."""
    if tensor.memory_config() == memory_config and tensor.device() is not None:
        return unchanged("to_memory_config", tensor)
    out = Out(tensor.dims, dtype or tensor.dtype, tensor.layout, memory_config)
    return launch("to_memory_config", [tensor], [out], same)


@op("sharded_to_interleaved")
def sharded_to_interleaved(
    input_tensor: Tensor,
    memory_config: MemoryConfig | None = None,
    output_dtype: DataType | None = None,
) -> Tensor:
    x = input_tensor
    memory = memory_config or DRAM_MEMORY_CONFIG
    if not x.is_sharded():
        return unchanged("sharded_to_interleaved", x)
    require(not memory.is_sharded(), "Output memory config must be Interleaved")
    out = Out(x.dims, output_dtype or x.dtype, x.layout, memory)
    return launch("sharded_to_interleaved", [x], [out], same)


@op("interleaved_to_sharded")
def interleaved_to_sharded(
    input_tensor: Tensor,
    sharded_memory_config: MemoryConfig,
    output_dtype: DataType | None = None,
    *,
    keep_l1_aligned: bool | None = False,
) -> Tensor:
    x = input_tensor
    require(
        not x.is_sharded(),
        "Input tensor memory layout must be INTERLEAVED, but got "
        f"TensorMemoryLayout::{x.memory_config().memory_layout.name}",
    )
    require(sharded_memory_config.is_sharded(), "Output memory config must be sharded")
    out = Out(x.dims, output_dtype or x.dtype, x.layout, sharded_memory_config)
    return launch("interleaved_to_sharded", [x], [out], same)


@op("to_layout")
def to_layout(
    tensor: Tensor,
    layout: Layout,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Tiles or rows; in its layout already, the tensor comes back whatever else is asked."""
    if layout is tensor.layout:
        return unchanged("to_layout", tensor)
    out_dtype = dtype or tensor.dtype
    if layout is Layout.ROW_MAJOR:
        if tensor.dtype.is_block:
            out_dtype = DataType.BFLOAT16  # rows have no shared exponents
        asked = dtype is None or dtype is tensor.dtype
        require(
            asked or (tensor.dtype.is_block and dtype is DataType.BFLOAT16),
            "dtype cannot be different from tensor dtype when converting to ROW_MAJOR_LAYOUT on "
            "device (allowed exception: BFLOAT8_B -> BFLOAT16, which untilize handles natively)!",
        )
    out = Out(tensor.dims, out_dtype, layout, memory_or_default(memory_config, tensor))
    return launch("to_layout", [tensor], [out], same, host=True)


@op("untilize")
def untilize(
    input_tensor: Tensor,
    *,
    memory_config: MemoryConfig | None = None,
    use_multicore: bool = True,
    sub_core_grids: Any = None,
) -> Tensor:
    x = input_tensor
    require(x.layout is Layout.TILE, "Can only untilize tile major data")
    dtype = DataType.BFLOAT16 if x.dtype.is_block else x.dtype
    out = Out(x.dims, dtype, Layout.ROW_MAJOR, memory_or_default(memory_config, x))
    return launch("untilize", [x], [out], same)


@op("tilize")
def tilize(
    input_tensor: Tensor,
    *,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    use_multicore: bool = True,
    sub_core_grids: Any = None,
) -> Tensor:
    """Whole tiles only: to_layout pads."""
    x = input_tensor
    require(x.layout is Layout.ROW_MAJOR, "Can only tilize row major data")
    height, width = x.dims[-2] if len(x.dims) > 1 else 1, x.dims[-1]
    for side, size in (("width", width), ("height", height)):
        require(
            size % TILE == 0,
            f"Input tensor {side} ({size}) must be divisible by tile {side} ({TILE})",
        )
    out = Out(x.dims, dtype or x.dtype, Layout.TILE, memory_or_default(memory_config, x))
    return launch("tilize", [x], [out], same)
