"""Table look-ups, maxima and draws."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.launch import Out, launch, op, require
from backends.emulator.tensor import Tensor
from backends.emulator.types import DRAM_MEMORY_CONFIG, DataType, Layout, MemoryConfig


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
    require(
        input_tensor.dtype in (DataType.UINT32, DataType.BFLOAT16),
        "Input must be UINT32 or BFLOAT16",
    )
    require(weight.layout is Layout.ROW_MAJOR, "Weights tensor must be in row major layout")
    require(weight.dtype is DataType.BFLOAT16, "Weights tensor must have BFLOAT16 dtype")
    width = weight.shape[-1]
    shape = (input_tensor.shape[0], input_tensor.shape[-1], width)
    out = Out(
        shape,
        dtype or weight.dtype,
        layout or Layout.ROW_MAJOR,
        memory_config or DRAM_MEMORY_CONFIG,
    )

    def compute(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        rows = table[:, :, 0, 0]  # [r, c, V, D]
        if ids.shape[:2] == (1, 1):
            return rows[:, :, ids.reshape(-1).long()].unflatten(2, shape[:2])
        mesh = [max(a, b) for a, b in zip(ids.shape[:2], rows.shape[:2], strict=True)]
        ids = ids.reshape(*ids.shape[:2], -1, 1).long().expand(*mesh, -1, width)
        return rows.expand(*mesh, *rows.shape[2:]).gather(2, ids).unflatten(2, shape[:2])

    read = shape[0] * shape[1] * width * 2
    return launch("embedding", [input_tensor, weight], [out], compute, dram_bytes=2 * read)


@op("argmax")
def argmax(
    input_tensor: Tensor,
    *,
    dim: int | None = None,
    keepdim: bool = False,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Index of the largest value, the first of equals."""
    require(
        input_tensor.dtype in (DataType.BFLOAT16, DataType.FLOAT32, DataType.INT32),
        "Only BFLOAT16, FLOAT32 and INT32 are supported for inputs!",
    )
    require(dim in (-1, len(input_tensor.shape) - 1), "argmax: only the last dim is emulated")
    shape = (*input_tensor.shape[:-1], 1) if keepdim else tuple(input_tensor.shape[:-1])
    out = Out(shape, DataType.UINT32, Layout.ROW_MAJOR, memory_config or DRAM_MEMORY_CONFIG)
    return launch("argmax", [input_tensor], [out], lambda x: x.argmax(-1, keepdim=keepdim))


@op("topk")
def topk(
    input_tensor: Tensor,
    k: int = 32,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
    *,
    memory_config: MemoryConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest of each row with their places, largest first, of equals the first one first."""
    require(dim in (-1, len(input_tensor.shape) - 1) and largest, "topk: only the largest of rows")
    width = input_tensor.shape[-1]
    shape = (*input_tensor.shape[:-1], k)
    memory = memory_config or DRAM_MEMORY_CONFIG
    index_type = DataType.UINT16 if width <= 65536 else DataType.UINT32

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, places = torch.topk(x, k, dim=-1, sorted=False)
        places = places.sort(dim=-1).values
        values = x.gather(-1, places)
        values, order = values.sort(dim=-1, descending=True, stable=True)
        return values, places.gather(-1, order)

    return launch(
        "topk",
        [input_tensor],
        [
            Out(shape, input_tensor.dtype, Layout.TILE, memory),
            Out(shape, index_type, Layout.TILE, memory),
        ],
        compute,
        attributes={"k": k},
    )


@op("sampling")
def sampling(
    input_values_tensor: Tensor,
    input_indices_tensor: Tensor,
    k: Tensor,
    p: Tensor,
    temp: Tensor,
    *,
    seed: int | None = None,
    sub_core_grids: Any = None,
    output_tensor: Tensor | None = None,
) -> Tensor:
    """One token per user out of candidates [1, 1, B, W]; `temp` is 1 / temperature.

    The k best, then the smallest set of them whose probability exceeds p, then a draw. A seed
    starts the device's stream of random numbers; None continues it.
    """
    values, users = input_values_tensor, input_values_tensor.shape[2]
    require(values.dtype is DataType.BFLOAT16, "values must be BFLOAT16")
    require(input_indices_tensor.layout is Layout.ROW_MAJOR, "indices must be in row major layout")
    require(
        input_indices_tensor.dtype in (DataType.INT32, DataType.UINT32),
        "indices must be INT32 or UINT32",
    )
    require(users <= 32, f"sampling works on 32 users at most, got {users}")
    for name, tensor in (("k", k), ("p", p), ("temp", temp)):
        require(
            tuple(tensor.shape) == (users,), f"{name} must have shape [{users}], got {tensor.shape}"
        )
    draws = values.device().draws
    if seed is not None and values.device().capturing is None:
        draws.manual_seed(seed)

    def compute(
        x: torch.Tensor, places: torch.Tensor, k: torch.Tensor, p: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        x, places, k, p, t = x[0, 0, 0, 0], places[0, 0, 0, 0], k[0, 0], p[0, 0], t[0, 0]
        if bool((k == 1).all()):
            chosen = x.argmax(-1, keepdim=True)
        else:
            chosen = _draw(x.float(), k, p.float(), t.float(), draws)
        return places.gather(-1, chosen).reshape(1, 1, 1, 1, 1, -1)

    out = Out((1, 1, 1, users), DataType.UINT32, Layout.ROW_MAJOR)
    inputs = [values, input_indices_tensor, k, p, temp]
    if output_tensor is not None:
        return launch("sampling", inputs, [], compute, into=output_tensor)
    return launch("sampling", inputs, [out], compute)


def _draw(
    x: torch.Tensor, k: torch.Tensor, p: torch.Tensor, t: torch.Tensor, draws: torch.Generator
) -> torch.Tensor:
    """Column [B, 1] drawn for each row of logits [B, W]."""
    ordered, order = x.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(x.shape[-1], device=x.device)
    outside = rank >= k[:, None]
    chances = torch.softmax((ordered * t[:, None]).masked_fill(outside, -torch.inf), dim=-1)
    before = chances.cumsum(-1) - chances  # what the better candidates already cover
    chances = chances.masked_fill((before >= p[:, None]) & (rank > 0), 0)
    point = torch.rand(len(x), 1, generator=draws, device=x.device)
    reached = chances.cumsum(-1)
    column = (reached < point * reached[:, -1:]).sum(-1, keepdim=True).clamp(max=x.shape[-1] - 1)
    return order.gather(-1, column)
