"""Parts, joins and orders of dims: slice, concat, pad, transpose, permute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from backends.emulator.api.types import (
    DRAM_MEMORY_CONFIG,
    TILE,
    DataType,
    Layout,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
    padded,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import (
    Out,
    fatal,
    launch,
    memory_or_default,
    op,
    require,
    unchanged,
)
from backends.emulator.loops.moves import joined


@op("slice")
def slice_(
    input_tensor: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    steps: Sequence[int] | None = None,
    *,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    x = input_tensor
    require(
        len(starts) == len(ends) == len(x.dims),
        f"The number of start and end indices must be the rank {len(x.dims)}",
    )
    for end, size in zip(ends, x.dims, strict=True):
        if end > size:
            fatal(f"Ends {end} must be less than or equal to the shape of the tensor {size}")
    spans = [
        slice(first, last, step)
        for first, last, step in zip(starts, ends, steps or [1] * len(starts), strict=True)
    ]
    shape = tuple(len(range(size)[span]) for size, span in zip(x.dims, spans, strict=True))
    cuts_tiles = any(
        span.indices(size)[0] % TILE or (len(range(size)[span]) % TILE and span.stop != size)
        for size, span in zip(x.dims[-2:], spans[-2:], strict=True)
    )
    # rows inside a tile are reached by untilizing, which block formats leave as bfloat16
    dtype = DataType.BFLOAT16 if cuts_tiles and x.dtype.is_block else x.dtype
    index = (slice(None), slice(None), *spans)
    out = Out(shape, dtype, x.layout, memory_or_default(memory_config, x))
    return launch("slice", [x], [out], lambda data: data[index], exact=not cuts_tiles)


@op("concat")
def concat(
    tensors: Sequence[Tensor], dim: int = 0, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    first = tensors[0]
    rank = len(first.dims)
    dim %= rank
    require(all(t.dtype is first.dtype for t in tensors), "All Tensors should have same dtypes.")
    other = {t.dims[:dim] + t.dims[dim + 1 :] for t in tensors}
    require(
        len(other) == 1,
        "All dimensions must be the same size except for the dimension along which the "
        "contenation is taking place.",
    )
    if len(tensors) == 1:
        return unchanged("concat", first, dim=dim)
    shape = list(first.dims)
    shape[dim] = sum(t.dims[dim] for t in tensors)
    layout = Layout.TILE if any(t.layout is Layout.TILE for t in tensors) else first.layout
    out = Out(tuple(shape), first.dtype, layout, memory_config or DRAM_MEMORY_CONFIG)

    def compute(*parts: torch.Tensor) -> torch.Tensor:
        mesh = [max(part.shape[axis] for part in parts) for axis in (0, 1)]
        return joined([part.expand(*mesh, *part.shape[2:]) for part in parts], dim + 2)

    whole_blocks = dim < rank - 1 or all(t.dims[dim] % TILE == 0 for t in tensors)
    return launch("concat", tensors, [out], compute, exact=whole_blocks, attributes={"dim": dim})


@op("pad")
def pad(
    input_tensor: Tensor,
    padding: Sequence[Sequence[int]],
    value: float,
    *,
    use_multicore: bool = True,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """[before, after] of the last dims."""
    x = input_tensor
    pairs = [(0, 0)] * (len(x.dims) - len(padding)) + [(a, b) for a, b in padding]
    require(
        x.layout is Layout.ROW_MAJOR or not any(before for before, _ in pairs),
        "ttnn.pad: on device tile padding does not support front padding",
    )
    shape = tuple(sum(pair) + size for pair, size in zip(pairs, x.dims, strict=True))
    in_place = x.layout is Layout.TILE and padded(shape, x.layout) == x.padded_shape
    memory = x.memory_config() if in_place else memory_or_default(memory_config, x)
    flat = [size for pair in reversed(pairs) for size in pair]
    return launch(
        "pad",
        [x],
        [Out(shape, x.dtype, x.layout, memory)],
        lambda data: torch.nn.functional.pad(data, flat, value=value),
        attributes={"padding": [size for pair in pairs for size in pair]},
    )


@op("transpose")
def transpose(
    input_tensor: Tensor, dim1: int, dim2: int, *, memory_config: MemoryConfig | None = None
) -> Tensor:
    order = list(range(len(input_tensor.dims)))
    order[dim1], order[dim2] = order[dim2], order[dim1]
    return _permuted("transpose", input_tensor, order, memory_config, dim1=dim1, dim2=dim2)


@op("permute")
def permute(
    input_tensor: Tensor, dims: Sequence[int], *, memory_config: MemoryConfig | None = None
) -> Tensor:
    rank = len(input_tensor.dims)
    order = [dim % rank for dim in dims]
    require(
        sorted(order) == list(range(rank)),
        f"The number of dimensions in the tensor input does not match the length of {list(dims)}",
    )
    return _permuted("permute", input_tensor, order, memory_config, dims=order)


def _permuted(
    name: str, x: Tensor, order: list[int], memory: MemoryConfig | None, **attributes: Any
) -> Tensor:
    shape = tuple(x.dims[dim] for dim in order)
    own = x.memory_config()
    if memory is None and own.shard_spec is not None:
        memory = MemoryConfig(buffer_type=own.buffer_type)
        if own.memory_layout is TensorMemoryLayout.HEIGHT_SHARDED:
            whole = padded(shape, x.layout)
            rows = -(-math.prod(whole[:-1]) // (TILE * own.shard_spec.num_cores())) * TILE
            spec = ShardSpec(own.shard_spec.grid, (rows, whole[-1]))
            memory = MemoryConfig(own.memory_layout, own.buffer_type, spec)
    mesh_order = (0, 1, *(dim + 2 for dim in order))
    return launch(
        name,
        [x],
        [Out(shape, x.dtype, x.layout, memory or own)],
        lambda data: data.permute(mesh_order),
        exact=order[-1] == len(order) - 1,
        attributes=attributes,
    )
