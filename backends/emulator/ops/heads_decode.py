"""Splitting the projection of one token per user into heads and joining heads again: moves only.

A core holds the heads of a user, or one head of all users.
"""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.api.types import (
    TILE,
    BufferType,
    CoreCoord,
    CoreRange,
    CoreRangeSet,
    DataType,
    Layout,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
    num_cores_to_corerangeset,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.loops.moves import contiguous, padded

_WIDE = (DataType.FLOAT32, DataType.BFLOAT16)


@op("experimental.nlp_create_qkv_heads_decode")
def nlp_create_qkv_heads_decode(
    input_tensor: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    overlap_qk_coregrid: bool | None = True,
    memory_config: MemoryConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """[1, 1, B, (H + 2K) W] to query [1, B, H, W] and keys, values [1, B, K, W], a core per user.

    The results are always sharded like that, whatever memory is asked for.
    """
    x, kv_heads = input_tensor, num_kv_heads or num_heads
    require(x.dtype in _WIDE, "Unsupported data format")
    require(x.layout is Layout.TILE, "Only tile layout is supported for input tensor")
    _, one, users, width = x.dims
    require(one == 1 and users <= TILE, f"Unsupported input shape = {x.shape}")
    require(
        width % (num_heads + 2 * kv_heads) == 0,
        f"Input shape {width} must be divisible by num_heads + 2*num_kv_heads = "
        f"{num_heads + 2 * kv_heads}",
    )
    require(
        num_heads >= kv_heads,
        f"num_q_heads={num_heads} must be greater than or equal to num_kv_heads={kv_heads}",
    )
    head = width // (num_heads + 2 * kv_heads)
    counts = (num_heads, kv_heads, kv_heads)
    apart = x.is_sharded() and not overlap_qk_coregrid
    grid = x.device().compute_with_storage_grid_size()  # type: ignore[union-attr]
    grids = [_cores(users if apart and i == 1 else 0, users, grid) for i in range(3)]

    def memory(heads: int, cores: CoreRangeSet) -> MemoryConfig:
        shard = ShardSpec(cores, (-(-heads // TILE) * TILE, head))
        return MemoryConfig(TensorMemoryLayout.HEIGHT_SHARDED, BufferType.L1, shard)

    def compute(data: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads = data.squeeze(2).unflatten(-1, (-1, head))
        return heads.split(counts, dim=-2)

    return launch(
        "experimental.nlp_create_qkv_heads_decode",
        [x],
        [
            Out((1, users, n, head), x.dtype, Layout.TILE, memory(n, cores))
            for n, cores in zip(counts, grids, strict=True)
        ],
        compute,
        exact=True,
        attributes={"num_heads": num_heads, "num_kv_heads": kv_heads},
    )


def _cores(first: int, count: int, grid: CoreCoord) -> CoreRangeSet:
    """`count` cores row by row from the `first` one on."""
    if first == 0:
        return num_cores_to_corerangeset(count, grid, row_wise=True)
    ranges = []
    (y, x), last = divmod(first, grid.x), first + count
    while y * grid.x + x < last:
        whole = (last - y * grid.x) // grid.x if x == 0 else 0
        end = CoreCoord(min(last - y * grid.x, grid.x) - 1, y + max(whole, 1) - 1)
        ranges.append(CoreRange(CoreCoord(x, y), end))
        x, y = 0, end.y + 1
    return CoreRangeSet(ranges)


@op("experimental.nlp_concat_heads_decode")
def nlp_concat_heads_decode(
    input_tensor: Tensor,
    *,
    num_heads: int,
    memory_config: MemoryConfig | None = None,
    sub_core_grids: Any = None,
) -> Tensor:
    """[1, B, H, W] (a core per user) to [1, 1, 32, H W] (a core per head), idle rows zero."""
    x = input_tensor
    require(x.dtype in _WIDE, "Unsupported data format")
    require(x.is_sharded(), "Input tensor must be sharded")
    require(
        len(x.memory_config().shard_spec.grid.ranges()) == 1 or sub_core_grids is not None,
        "users on cores that form no rectangle need sub_core_grids: bad optional access",
    )
    require(
        x.padded_shape[2] >= num_heads,
        f"{num_heads} heads asked for, the input holds {x.padded_shape[2]}",
    )
    _, users, heads, head = x.dims
    grid = x.device().compute_with_storage_grid_size()  # type: ignore[union-attr]
    cores = num_cores_to_corerangeset(num_heads, grid, row_wise=True)
    shard = ShardSpec(cores, (TILE, head))
    memory = MemoryConfig(TensorMemoryLayout.WIDTH_SHARDED, BufferType.L1, shard)

    def compute(data: torch.Tensor) -> torch.Tensor:
        flat = contiguous(data[..., :num_heads, :]).flatten(-2).unsqueeze(2)
        return padded(flat, (*flat.shape[:-2], TILE, num_heads * head))

    return launch(
        "experimental.nlp_concat_heads_decode",
        [x],
        [Out((1, 1, TILE, num_heads * head), x.dtype, Layout.TILE, memory)],
        compute,
        exact=True,
        attributes={"num_heads": num_heads},
    )
