"""Drawing one token per user out of candidates, as TT-NN's sampling op does."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.api.types import TILE, DataType, Layout
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op, require

_MOST_USERS = 32  # one core each


def _check(values: Tensor, indices: Tensor, settings: dict[str, Tensor]) -> None:
    require(values.dtype is DataType.BFLOAT16, "Only BFLOAT16 is supported for inputs!")
    require(values.layout is Layout.TILE, "Only TILE_LAYOUT is supported for inputs!")
    require(
        indices.dtype in (DataType.UINT32, DataType.INT32),
        "Only UINT32 & INT32 dtypes are supported for input indices!",
    )
    require(indices.layout is Layout.ROW_MAJOR, "Only ROW_MAJOR is supported for input indices!")
    require(indices.dims == values.dims, "Input values and indices must have the same shape!")
    *outer, users, width = values.dims
    require(
        outer == [1, 1],
        f"Sampling requires input dims 0 and 1 (N, C) to be 1; got {list(values.dims)}!",
    )
    require(
        1 <= users <= _MOST_USERS,
        f"Sampling currently supports between 1 and 32 users (one core per user); got {users}!",
    )
    tiles, rest = divmod(width, TILE)
    require(
        tiles and not rest,
        f"Input inner dim ({width}) must be non-zero and divisible by 32, pad if needed!",
    )
    require(
        tiles & (tiles - 1) == 0,
        f"Input inner dim ({width}) must yield a power-of-2 number of tiles (Wt = W/32 = {tiles}); "
        "pad W up to the next power-of-2 multiple of 32",
    )
    kinds = {"k": (DataType.UINT32, DataType.INT32)}
    for name, tensor in settings.items():
        allowed = kinds.get(name, (DataType.BFLOAT16,))
        require(
            tensor.dtype in allowed,
            f"Only {' & '.join(kind.name for kind in allowed)} dtypes are supported for {name}!",
        )
        require(
            tensor.layout is Layout.ROW_MAJOR, f"Only ROW_MAJOR layout is supported for {name}!"
        )
        require(tensor.dims == (users,), f"{name} must have shape [{users}] (one per user)!")


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

    The k best, then the fewest of them whose probability reaches p, then a draw; k 1 or p 0 takes
    the best. A seed starts the device's stream of random numbers; None continues it.
    """
    values, users = input_values_tensor, input_values_tensor.dims[2]
    _check(values, input_indices_tensor, {"k": k, "p": p, "temp": temp})
    inputs = [values, input_indices_tensor, k, p, temp]
    device = values.device()
    if seed is not None and device is not None and device.capturing is None:
        device.draws.manual_seed(seed)
    draws = None if device is None else device.draws

    def compute(
        x: torch.Tensor, places: torch.Tensor, k: torch.Tensor, p: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        x, places, k, p, t = x[0, 0, 0, 0], places[0, 0, 0, 0], k[0, 0], p[0, 0], t[0, 0]
        wide = x.float()
        if bool((k == 1).all()):
            chosen = wide.argmax(-1, keepdim=True)
        else:
            chosen = draw(wide, k, p.float(), t.float(), draws)
        return places.gather(-1, chosen).view(1, 1, 1, 1, 1, -1)

    if output_tensor is None:
        out = Out((1, 1, 1, users), DataType.UINT32, Layout.ROW_MAJOR)
        return launch("sampling", inputs, [out], compute)
    require(
        output_tensor.dims == (1, 1, 1, users),
        f"Sampling preallocated output logical shape must be [1,1,1,{users}] (input dim 2), got "
        f"{list(output_tensor.dims)}",
    )
    return launch("sampling", inputs, [], compute, into=output_tensor)


def draw(
    x: torch.Tensor,
    k: torch.Tensor,
    p: torch.Tensor,
    t: torch.Tensor,
    draws: torch.Generator | None,
) -> torch.Tensor:
    """Column [B, 1] drawn for each row of logits [B, W]."""
    ordered, order = x.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(x.shape[-1], device=x.device)
    outside = rank >= k.clamp(min=1)[:, None]
    chances = torch.softmax((ordered * t[:, None]).masked_fill(outside, -torch.inf), dim=-1)
    before = chances.cumsum(-1) - chances  # what the better candidates already cover
    chances = chances.masked_fill((before >= p[:, None]) & (rank > 0), 0)
    point = torch.rand(len(x), 1, generator=draws, device=x.device)
    reached = chances.cumsum(-1)
    # the column whose share of [0, total) holds the point; the last share ends at the total
    column = (reached <= point * reached[:, -1:]).sum(-1, keepdim=True)
    last = (chances > 0).sum(-1, keepdim=True) - 1
    return order.gather(-1, column.minimum(last))
