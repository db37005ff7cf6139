"""Moves and renamings: nothing is computed, and where values stay as they are nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends.emulator.launch import Out, launch, memory_or_default, op, require
from backends.emulator.tensor import Tensor, padded
from backends.emulator.types import (
    DRAM_MEMORY_CONFIG,
    BufferType,
    DataType,
    Layout,
    MemoryConfig,
    TensorMemoryLayout,
)


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _check_shards(tensor: Tensor, memory: MemoryConfig) -> None:
    """Shards must cover the tensor."""
    spec = memory.shard_spec
    if spec is None:
        return
    shape = padded(tensor.shape, tensor.layout)
    rows, width, cores = 1, shape[-1], spec.num_cores()
    for size in shape[:-1]:
        rows *= size
    height, across = spec.shape
    covered = {
        TensorMemoryLayout.WIDTH_SHARDED: (rows <= height and width <= across * cores),
        TensorMemoryLayout.HEIGHT_SHARDED: (rows <= height * cores and width <= across),
    }.get(memory.memory_layout, True)
    require(
        covered,
        f"Shards of {height}x{across} on {cores} cores do not hold a tensor of {rows}x{width}",
    )


@op("to_memory_config")
def to_memory_config(
    tensor: Tensor,
    memory_config: MemoryConfig,
    dtype: DataType | None = None,
    *,
    output_tensor: Tensor | None = None,
) -> Tensor:
    if tensor.memory_config() == memory_config and dtype in (None, tensor.dtype):
        return tensor
    _check_shards(tensor, memory_config)
    out = Out(tensor.shape, dtype or tensor.dtype, tensor.layout, memory_config)
    return launch("to_memory_config", [tensor], [out], _same)


@op("sharded_to_interleaved")
def sharded_to_interleaved(
    input_tensor: Tensor,
    memory_config: MemoryConfig = DRAM_MEMORY_CONFIG,
    output_dtype: DataType | None = None,
) -> Tensor:
    require(input_tensor.is_sharded(), "Input tensor must be sharded")
    out = Out(input_tensor.shape, output_dtype or input_tensor.dtype, Layout.TILE, memory_config)
    return launch("sharded_to_interleaved", [input_tensor], [out], _same)


@op("interleaved_to_sharded")
def interleaved_to_sharded(input_tensor: Tensor, sharded_memory_config: MemoryConfig) -> Tensor:
    require(not input_tensor.is_sharded(), "Input tensor must be interleaved")
    _check_shards(input_tensor, sharded_memory_config)
    out = Out(input_tensor.shape, input_tensor.dtype, input_tensor.layout, sharded_memory_config)
    return launch("interleaved_to_sharded", [input_tensor], [out], _same)


@op("to_layout")
def to_layout(
    tensor: Tensor,
    layout: Layout,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    dtype = dtype or tensor.dtype
    if layout is tensor.layout and dtype is tensor.dtype:
        return tensor
    require(
        layout is Layout.TILE or not dtype.is_block,
        f"Only TILE layout is supported for {dtype.name} dtype!",
    )
    out = Out(tensor.shape, dtype, layout, memory_config or tensor.memory_config())
    return launch("to_layout", [tensor], [out], _same)


@op("untilize")
def untilize(
    input_tensor: Tensor, *, memory_config: MemoryConfig | None = None, use_multicore: bool = True
) -> Tensor:
    require(input_tensor.layout is Layout.TILE, "Can only untilize tile major data")
    block = input_tensor.dtype.is_block
    dtype = DataType.BFLOAT16 if block else input_tensor.dtype
    out = Out(
        input_tensor.shape, dtype, Layout.ROW_MAJOR, memory_or_default(memory_config, input_tensor)
    )
    return launch("untilize", [input_tensor], [out], _same)


@op("tilize")
def tilize(
    input_tensor: Tensor,
    *,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    use_multicore: bool = True,
) -> Tensor:
    out = Out(
        input_tensor.shape,
        dtype or input_tensor.dtype,
        Layout.TILE,
        memory_or_default(memory_config, input_tensor),
    )
    return launch("tilize", [input_tensor], [out], _same)


@op("reshape")
def reshape(
    input_tensor: Tensor,
    shape: Sequence[int],
    padded_shape: Sequence[int] | None = None,
    *,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """A new logical shape; with `padded_shape` a view that drops (or reveals) padding rows."""
    new, old = tuple(shape), tuple(input_tensor.shape)
    if -1 in new:
        known = 1
        for size in new:
            known *= size if size != -1 else 1
        volume = torch.Size(old).numel()
        new = tuple(volume // known if size == -1 else size for size in new)
    memory = memory_config or input_tensor.memory_config()
    out = Out(new, input_tensor.dtype, input_tensor.layout, memory)
    if torch.Size(new).numel() == torch.Size(old).numel():
        if new == old:
            return input_tensor
        return launch(
            "reshape",
            [input_tensor],
            [out],
            lambda x: x.reshape(*x.shape[:2], *new),
        )
    require(
        padded_shape is not None and new[-1] == old[-1] and new[-2] <= old[-2],
        f"reshape of {list(old)} to {list(new)}: the volumes differ",
    )
    rows = new[-2]
    return launch(
        "reshape",
        [input_tensor],
        [out],
        lambda x: x[..., :rows, :].reshape(*x.shape[:2], *new),
    )


@op("unsqueeze_to_4D")
def unsqueeze_to_4D(tensor: Tensor) -> Tensor:
    missing = 4 - len(tensor.shape)
    require(missing >= 0, "Tensor cannot have more than 4 dimensions!")
    return reshape(tensor, (1,) * missing + tuple(tensor.shape)) if missing else tensor


@op("slice")
def slice_(
    input_tensor: Tensor,
    starts: Sequence[int] = (),
    ends: Sequence[int] = (),
    steps: Sequence[int] | None = None,
    *,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    spans = [slice(*bounds) for bounds in zip(starts, ends, steps or [1] * len(starts), strict=True)]
    shape = tuple(len(range(n)[span]) for n, span in zip(input_tensor.shape, spans, strict=True))
    out = Out(
        shape,
        input_tensor.dtype,
        input_tensor.layout,
        memory_or_default(memory_config, input_tensor),
    )
    index = (slice(None), slice(None), *spans)
    return launch("slice", [input_tensor], [out], lambda x: x[index])


@op("concat")
def concat(
    tensors: Sequence[Tensor], dim: int = 0, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    first = tensors[0]
    require(
        all(t.dtype is first.dtype for t in tensors), "concat needs tensors of one data type"
    )
    dim %= len(first.shape)
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    memory = memory_config or (DRAM_MEMORY_CONFIG if first.in_dram() else first.memory_config())
    out = Out(tuple(shape), first.dtype, first.layout, memory)
    return launch("concat", tensors, [out], lambda *parts: _join(parts, dim + 2))


def _join(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    rows = max(part.shape[0] for part in parts)
    cols = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(rows, cols, *part.shape[2:]) for part in parts], dim)


@op("pad")
def pad(
    input_tensor: Tensor, padding: Any, value: float, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    flat = [size for pair in reversed(list(padding)) for size in pair]
    shape = tuple(
        n + before + after
        for n, (before, after) in zip(input_tensor.shape, padding, strict=True)
    )
    out = Out(
        shape,
        input_tensor.dtype,
        input_tensor.layout,
        memory_or_default(memory_config, input_tensor),
    )
    return launch(
        "pad",
        [input_tensor],
        [out],
        lambda x: torch.nn.functional.pad(x, flat, value=value),
    )


@op("transpose")
def transpose(
    input_tensor: Tensor, dim1: int, dim2: int, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    rank = len(input_tensor.shape)
    order = list(range(rank))
    order[dim1], order[dim2] = order[dim2], order[dim1]
    return _permuted("transpose", input_tensor, order, memory_config)


@op("permute")
def permute(
    input_tensor: Tensor, dims: Sequence[int], *, memory_config: MemoryConfig | None = None
) -> Tensor:
    return _permuted("permute", input_tensor, list(dims), memory_config)


def _permuted(name: str, x: Tensor, order: list[int], memory: MemoryConfig | None) -> Tensor:
    shape = tuple(x.shape[dim] for dim in order)
    out = Out(shape, x.dtype, x.layout, memory_or_default(memory, x))
    mesh_order = (0, 1, *(dim + 2 for dim in order))
    return launch(name, [x], [out], lambda data: data.permute(mesh_order))


def in_l1(memory: MemoryConfig) -> bool:
    """Whether a memory config means L1."""
    return memory.buffer_type is BufferType.L1
