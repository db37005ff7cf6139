"""Writing keys and values into caches, in place: pages behind a page table, or dense rows.

A page-table entry of -1 is skipped, as the kernel skips it; so is a user at position -1.
"""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.launch import finish, launch, op, require
from backends.emulator.ops.paging import chips, part, step_index
from backends.emulator.tensor import Tensor
from backends.emulator.types import DataType


def _check_table(page_table: Tensor) -> None:
    require(page_table.dtype is DataType.INT32, "Expect page table to have datatype INT32")


@op("experimental.paged_update_cache")
def paged_update_cache(
    cache_tensor: Tensor,
    input_tensor: Tensor,
    *,
    update_idxs: Any = (),
    update_idxs_tensor: Tensor | None = None,
    share_cache: bool | None = None,
    page_table: Tensor | None = None,
    batch_offset: int = 0,
    compute_kernel_config: Any = None,
) -> Tensor:
    """One position [1, B, K, W] of every user, rounded to the cache's format."""
    require(input_tensor.is_sharded(), "Expect input_tensor to be sharded")
    require(
        input_tensor.dtype in (DataType.FLOAT32, DataType.BFLOAT16),
        "Data type of input tensor for paged_update_cache must be FLOAT32 or BFLOAT16",
    )
    require(update_idxs_tensor is not None, "Paged cache requires update_idxs tensor")
    require(
        update_idxs_tensor.dtype is DataType.INT32,
        "Expected update_idxs to have datatype INT32",
    )
    dtype = cache_tensor.dtype
    inputs = [cache_tensor, input_tensor, update_idxs_tensor]
    if page_table is not None:
        _check_table(page_table)
        inputs.append(page_table)
    size, heads = cache_tensor.shape[2], cache_tensor.shape[1]

    def compute(cache: torch.Tensor, x: torch.Tensor, *where: torch.Tensor) -> None:
        x = finish(x[:, :, 0, :, :heads], dtype)  # [r, c, B, K, W]
        for index in step_index(size, *where):
            target = cache[index.rows, index.cols].flatten(2, 4)  # a view: caches are contiguous
            new = part(x, index.rows, index.cols)
            if index.users is not None:
                new = new[:, :, index.users]
            new = new.flatten(2, 3).expand(*target.shape[:2], -1, -1)
            target.index_copy_(2, index.cache_rows(heads), new)

    written = cache_tensor.shape[1] * cache_tensor.shape[3] * input_tensor.shape[1]
    return launch(
        "experimental.paged_update_cache",
        inputs,
        [],
        compute,
        into=cache_tensor,
        dram_bytes=written * dtype.tile_bytes // 32,  # whole tiles are read and written back
        attributes={"users": input_tensor.shape[1]},
    )


@op("experimental.paged_fill_cache")
def paged_fill_cache(
    cache_tensor: Tensor,
    input_tensor: Tensor,
    page_table: Tensor,
    *,
    batch_idx_tensor: Tensor | None = None,
    batch_idx: int = 0,
    compute_kernel_config: Any = None,
) -> Tensor:
    """Whole prompts [N, K, S, W], page by page."""
    require(
        input_tensor.dtype is cache_tensor.dtype,
        f"Input tensor dtype ({input_tensor.dtype}) must match cache tensor dtype "
        f"({cache_tensor.dtype}) for paged_fill_cache",
    )
    _check_table(page_table)
    size = cache_tensor.shape[2]
    users, _, length, _ = input_tensor.shape
    require(
        length <= size * page_table.shape[1],
        f"Input seq_len ({length}) must fit in max_num_blocks_per_seq ({page_table.shape[1]}) * "
        f"block_size ({size})",
    )
    require(
        batch_idx_tensor is not None or batch_idx < page_table.shape[0],
        "Batch idx must be within the page_table batch size",
    )
    require(
        batch_idx_tensor is not None or users == 1,
        f"input batch must be 1 without batch_idx_tensor, got {users}",
    )
    inputs = [cache_tensor, input_tensor, page_table]
    if batch_idx_tensor is not None:
        inputs.append(batch_idx_tensor)

    def compute(cache: torch.Tensor, x: torch.Tensor, *tables: torch.Tensor) -> None:
        blocks_needed = -(-length // size)
        x = torch.nn.functional.pad(x, (0, 0, 0, blocks_needed * size - length))
        pages = x.unflatten(4, (blocks_needed, size)).transpose(3, 4)  # [r, c, N, blocks, K, s, W]
        for rows, cols, own in chips(*tables):
            wanted = own[1].reshape(-1).long() if len(own) > 1 else torch.tensor([batch_idx])
            table = own[0][wanted, :blocks_needed].long()  # [N, blocks]
            kept = table >= 0
            target = cache[rows, cols]
            target[:, :, table[kept]] = part(pages, rows, cols)[:, :, kept]

    return launch(
        "experimental.paged_fill_cache",
        inputs,
        [],
        compute,
        into=cache_tensor,
        dram_bytes=2 * input_tensor.buffer_bytes(),
    )


@op("fill_cache")
def fill_cache(cache_tensor: Tensor, input_tensor: Tensor, batch_idx: int) -> Tensor:
    """One whole prompt [1, K, S, W] into a dense cache's row."""
    length = input_tensor.shape[2]
    require(
        length <= cache_tensor.shape[2],
        f"a prompt of {length} does not fit a cache of {cache_tensor.shape[2]} positions",
    )
    require(batch_idx < cache_tensor.shape[0], "Batch idx must be within the cache's batch")
    dtype = cache_tensor.dtype

    def compute(cache: torch.Tensor, x: torch.Tensor) -> None:
        cache[:, :, batch_idx, :, :length] = finish(x[:, :, 0], dtype)

    return launch(
        "fill_cache",
        [cache_tensor, input_tensor],
        [],
        compute,
        into=cache_tensor,
        dram_bytes=2 * input_tensor.buffer_bytes(),
    )
