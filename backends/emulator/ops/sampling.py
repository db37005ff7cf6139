"""Drawing one token per user out of candidates, as TT-NN does: every user's core has a stream of
random numbers, which `manual_seed` starts and each draw takes one number from."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.api.types import TILE, DataType, Layout
from backends.emulator.chip.device import USER_CORES
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.loops.call import call, can_run


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
        1 <= users <= USER_CORES,
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


@op("manual_seed")
def manual_seed(
    seeds: int | Tensor,
    *,
    device: Any = None,
    user_ids: int | Tensor | None = None,
    sub_core_grids: Any = None,
) -> Tensor:
    """Start the random numbers of the users' cores; one seed is for all whom `user_ids` names."""
    given = [value for value in (seeds, user_ids) if isinstance(value, Tensor)]
    if not isinstance(seeds, Tensor):
        require(device is not None, "Device must be provided when seeds is a uint32_t value.")
    for value in given:
        require(
            value.dtype is DataType.UINT32 and value.layout is Layout.ROW_MAJOR,
            "Seeds tensor and User IDs tensor must be UINT32 in ROW_MAJOR layout.",
        )
        require(len(value.dims) == 1, "Seeds tensor and User IDs tensor must be 1-dimensional.")
    if len(given) == 2:
        sizes = [value.dims[0] for value in given]
        require(
            sizes[0] == sizes[1],
            "Seeds tensor and User IDs tensor must have the same number of elements. Got seeds "
            f"volume: {sizes[0]} and user_ids volume: {sizes[1]}",
        )
    draws = (given[0].device() if given else device).draws
    out = Out((1,), DataType.UINT32, Layout.ROW_MAJOR)
    if not given:
        chosen = draws if user_ids is None else [draws[user_ids]]
        for stream in chosen:
            stream.manual_seed(seeds)
        return Tensor(None, *out, device)

    def compute(*data: torch.Tensor) -> torch.Tensor:
        read = iter(part.flatten()[: given[0].dims[0]].tolist() for part in data)
        values = next(read) if isinstance(seeds, Tensor) else [seeds] * len(data[0].flatten())
        users = next(read) if isinstance(user_ids, Tensor) else range(len(values))
        for value, user in zip(values, users, strict=False):
            draws[user].manual_seed(value)
        return data[0].new_zeros(1, 1, 1)

    return launch("manual_seed", given, [out], compute)


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
    the best. A seed starts the streams of all users alike; None goes on with them.
    """
    values, users = input_values_tensor, input_values_tensor.dims[2]
    _check(values, input_indices_tensor, {"k": k, "p": p, "temp": temp})
    inputs = [values, input_indices_tensor, k, p, temp]
    device = values.device()
    require(device is not None, "sampling: Operands to sampling need to be on device!")
    draws = device.draws  # type: ignore[union-attr]
    if seed is not None and device.capturing is None:  # type: ignore[union-attr]
        for stream in draws:
            stream.manual_seed(seed)

    def compute(
        x: torch.Tensor, places: torch.Tensor, k: torch.Tensor, p: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        x, places, k, p, t = x[0, 0, 0, 0], places[0, 0, 0, 0], k[0, 0], p[0, 0], t[0, 0]
        found = _best(x, places, k)
        if found is None:
            column = draw(x.float(), k, p.float(), t.float(), draws)
            found = places.gather(-1, column)
        return found.view(1, 1, 1, 1, 1, -1)

    if output_tensor is None:
        out = Out((1, 1, 1, users), DataType.UINT32, Layout.ROW_MAJOR)
        return launch("sampling", inputs, [out], compute)
    require(
        output_tensor.dims == (1, 1, 1, users),
        f"Sampling preallocated output logical shape must be [1,1,1,{users}] (input dim 2), got "
        f"{list(output_tensor.dims)}",
    )
    return launch("sampling", inputs, [], compute, into=output_tensor)


def _best(x: torch.Tensor, places: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
    """Of each row of logits [B, W] the place of the largest; None unless every k is 1."""
    if can_run(x, places, k) and k.dtype is places.dtype is torch.int32:
        out = places.new_empty(len(x))
        if call("best_of", x=x, places=places, most=k, out=out, rows=x.shape[0], width=x.shape[1]):
            return out
    if bool((k == 1).all()):
        return places.gather(-1, x.float().argmax(-1, keepdim=True))
    return None


def draw(
    x: torch.Tensor,
    k: torch.Tensor,
    p: torch.Tensor,
    t: torch.Tensor,
    draws: list[torch.Generator],
) -> torch.Tensor:
    """Column [B, 1] drawn for each row of logits [B, W]."""
    ordered, order = x.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(x.shape[-1], device=x.device)
    outside = rank >= k.clamp(min=1)[:, None]
    chances = torch.softmax((ordered * t[:, None]).masked_fill(outside, -torch.inf), dim=-1)
    before = chances.cumsum(-1) - chances  # what the better candidates already cover
    chances = chances.masked_fill((before >= p[:, None]) & (rank > 0), 0)
    points = [torch.rand(1, generator=stream) for stream in draws[: len(x)]]
    point = torch.stack(points).to(x.device)
    reached = chances.cumsum(-1)
    # the column whose share of [0, total) holds the point; the last share ends at the total
    column = (reached <= point * reached[:, -1:]).sum(-1, keepdim=True)
    last = (chances > 0).sum(-1, keepdim=True) - 1
    return order.gather(-1, column.minimum(last))
