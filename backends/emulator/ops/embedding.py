"""Rows of a table by their numbers."""

from __future__ import annotations

import torch

from backends.emulator.api.types import BufferType, DataType, Layout, MemoryConfig, stored_bytes
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, memory_or_default, op, require
from backends.emulator.loops.moves import gathered


@op("embedding")
def embedding(
    input_tensor: Tensor,
    weight: Tensor,
    *,
    layout: Layout | None = None,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Rows of `weight` [1, 1, V, D] as [batch, n, D]; `input_tensor` is [batch, ..., n]."""
    ids, table = input_tensor, weight
    require(ids.dtype in (DataType.UINT32, DataType.BFLOAT16), "Input must be UINT32 or BFLOAT16")
    require(table.dtype is DataType.BFLOAT16, "Weights tensor must have BFLOAT16 dtype")
    require(
        all(size == 1 for size in table.dims[:-2]),
        f"First two dimensions for the weights must be 1 but got {table.shape}",
    )
    lists = ids.dims[:1] if len(ids.dims) > 1 else ()
    shape = (*lists, ids.dims[-1], table.dims[-1])
    count = ids.logical_volume()
    require(
        count * table.dims[-1] == torch.Size(shape).numel(),
        f"input must be lists of numbers, one per batch, got {ids.shape}",
    )

    def compute(numbers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.flatten(2, -2)  # [r, c, V, D]
        numbers = numbers.flatten(2)  # [r, c, n]
        found = gathered(rows, numbers)
        if found is not None:
            return found.view(*found.shape[:2], *shape)
        numbers = numbers.long()
        if numbers.shape[:2] == (1, 1):
            found = rows.index_select(2, numbers[0, 0])
        else:
            r = torch.arange(rows.shape[0], device=rows.device)[:, None, None]
            c = torch.arange(rows.shape[1], device=rows.device)[:, None]
            found = rows[r, c, numbers]
        return found.view(*found.shape[:2], *shape)

    out = Out(
        shape,
        dtype or table.dtype,
        layout or Layout.ROW_MAJOR,
        memory_or_default(memory_config, ids),
    )
    read = count * table.dims[-1] * 2  # bytes of the rows that are picked
    written = stored_bytes(shape, out.dtype, out.layout)
    where = out.memory.buffer_type is BufferType.DRAM
    return launch(
        "embedding", [ids, table], [out], compute, dram_bytes=read + (written if where else 0)
    )
