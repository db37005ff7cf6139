"""The largest values of rows and their places; of equals the first one comes first."""

from __future__ import annotations

import torch

from backends.emulator.api.types import DataType, Layout, MemoryConfig
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, memory_or_default, op, require
from backends.emulator.loops.call import CONSTANTS, call, can_run
from backends.emulator.loops.moves import reshaped

_MOST_SHORT = 65_536  # columns that a 16-bit index can count


@op("argmax")
def argmax(
    input_tensor: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Place of the largest value along `dim`."""
    x = input_tensor
    require(dim is not None, "argmax over all dims is not emulated: name a dim")
    kinds = [DataType.BFLOAT16, DataType.FLOAT32]
    if x.layout is Layout.ROW_MAJOR:
        kinds += [DataType.INT32, DataType.UINT32, DataType.UINT16]
    require(
        x.dtype in kinds,
        f"Only {', '.join(kind.name for kind in kinds)} are supported for inputs with "
        f"{x.layout.name} layout, got {x.dtype}",
    )
    assert dim is not None
    dim %= len(x.dims)
    shape = (*x.dims[:dim], *((1,) if keepdim else ()), *x.dims[dim + 1 :])

    def compute(data: torch.Tensor) -> torch.Tensor:
        wide = data.float() if data.dtype is torch.bfloat16 else data  # seven times as fast
        return wide.argmax(dim + 2, keepdim=keepdim)

    out = Out(shape, DataType.UINT32, Layout.ROW_MAJOR, memory_or_default(memory_config, x))
    return launch("argmax", [x], [out], compute, attributes={"dim": dim})


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
    """The k largest of each row with their places, largest first."""
    x = input_tensor
    width = x.dims[-1]
    require(x.layout is Layout.TILE, "The input must be in tiled format")
    require(
        x.dtype in (DataType.BFLOAT16, DataType.BFLOAT8_B, DataType.FLOAT32),
        f"Input tensor must be BFLOAT16, BFLOAT8_B, or FLOAT32, got: {x.dtype}",
    )
    require(
        dim in (-1, len(x.dims) - 1) and largest, "only the largest values of rows are emulated"
    )
    require(
        k <= width, f"K cannot be larger than the dimension size! K={k}, dimension size={width}"
    )
    shape = (*x.dims[:-1], k)
    memory = memory_or_default(memory_config, x)
    short = width <= _MOST_SHORT and x.dtype is not DataType.FLOAT32
    return launch(
        "topk",
        [x],
        [
            Out(shape, x.dtype, Layout.TILE, memory),
            Out(shape, DataType.UINT16 if short else DataType.UINT32, Layout.TILE, memory),
        ],
        lambda data: largest_first(data, k),
        attributes={"k": k},
    )


def largest_first(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and places of the k largest of each row, by value and then by place.

    torch.topk takes any of equal values, so it is asked for more than needed: where the last one
    is still as large as the k-th, equals may be missing, and the whole row is sorted.
    """
    if x.dtype is torch.bfloat16:
        done = _by_loop(x, k)
        if done is not None:
            return done
    spare = min(2 * k, x.shape[-1])
    found, places = torch.topk(x, spare, dim=-1)
    unsure = found[..., -1] == found[..., k - 1]
    places = places.sort(dim=-1).values
    values, order = x.gather(-1, places).sort(dim=-1, descending=True, stable=True)
    values, places = values[..., :k], places.gather(-1, order[..., :k])
    if spare < x.shape[-1] and bool(unsure.any()):
        all_values, all_places = x[unsure].sort(dim=-1, descending=True, stable=True)
        values[unsure], places[unsure] = all_values[:, :k], all_places[:, :k]
    return values, places


def _by_loop(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The k largest of rows [..., D] of bfloat16 and their places; None if one is no number."""
    rows = reshaped(x, (-1, x.shape[-1]))  # a view of parts of longer rows
    if not can_run(rows[:1]) or k > CONSTANTS["MOST_LARGEST"]:
        return None
    values = x.new_empty(*x.shape[:-1], k)
    places = x.new_empty(values.shape, dtype=torch.int32)
    done = call(
        "largest_first", x=rows, values=values, places=places, rows=len(rows), width=x.shape[-1],
        apart=rows.stride(0), most=k,
    )  # fmt: skip
    return (values, places) if done else None
