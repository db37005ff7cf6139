"""What caches take: types, layouts, and sizes that fit together."""

from __future__ import annotations

from backends.emulator.api.types import DataType, Layout, overlap
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import require

_INTEGERS = (DataType.INT32, DataType.UINT32)


def _check_table(page_table: Tensor, name: str) -> None:
    require(page_table.dtype is DataType.INT32, f"Expect {name} to have datatype INT32")
    require(
        page_table.layout is Layout.ROW_MAJOR, f"Expect {name} to have memory layout in ROW MAJOR"
    )


def check_update(
    cache: Tensor, x: Tensor, positions: Tensor | None, page_table: Tensor | None
) -> None:
    """One position of every user, from shards into its page or its row."""
    users = x.dims[1]
    require(positions is not None, "Paged cache requires update_idxs tensor")
    assert positions is not None
    if page_table is not None:
        _check_table(page_table, "page table")
        require(
            page_table.dims[0] == users,
            f"Batch size between page_table and input_tensor must match, got {page_table.dims[0]} "
            f"and {users}",
        )
    else:
        require(
            cache.dims[0] == users,
            f"Expect batch in input tensor match the batch in cache tensor, got {users} and "
            f"{cache.dims[0]}",
        )
    require(positions.dtype is DataType.INT32, "Expected update_idxs to have datatype INT32")
    require(
        positions.layout is Layout.ROW_MAJOR,
        "Expected update_idxs to have memory layout in ROW MAJOR",
    )
    require(
        positions.logical_volume() == users,
        f"Number of update_idxs ({positions.logical_volume()}) should match batch size ({users})",
    )
    require(x.is_sharded(), "Expect input_tensor to be sharded")
    require(
        x.dtype in (DataType.FLOAT32, DataType.BFLOAT16),
        "Data type of input tensor for paged_update_cache must be FLOAT32 or BFLOAT16; decode "
        "update repacks into the cache dtype and should not receive low-precision packed input",
    )
    require(
        x.dims[3] == cache.dims[3],
        f"paged_update_cache geometry mismatch: head_dim is {cache.dims[3]} in the cache and "
        f"{x.dims[3]} in the input",
    )


def check_apart(k: Tensor, v: Tensor) -> None:
    """Keys and values that are written at a time lie on different cores."""
    first, second = (x.memory_config().shard_spec.grid for x in (k, v))
    require(
        not overlap(first, second),
        f"input_tensor1 ({first}) and input_tensor2 ({second}) must not overlap",
    )


def check_fill(
    cache: Tensor, x: Tensor, page_table: Tensor, places: Tensor | None, batch_idx: int
) -> None:
    """Whole prompts into their pages, in the cache's format."""
    users, heads, length, width = x.dims
    require(
        x.dtype is cache.dtype,
        f"Input tensor dtype ({x.dtype}) must match cache tensor dtype ({cache.dtype}) for "
        "paged_fill_cache; cast prefill K/V to the cache dtype before filling the paged cache.",
    )
    _check_table(page_table, "page_table_tensor")
    size = cache.dims[2]
    require(
        (heads, width) == (cache.dims[1], cache.dims[3]),
        f"paged_fill_cache geometry mismatch: cache has kv_heads={cache.dims[1]}, "
        f"head_dim={cache.dims[3]} but input has kv_heads={heads}, head_dim={width}",
    )
    require(
        length <= size * page_table.dims[1],
        f"Input seq_len ({length}) must fit in max_num_blocks_per_seq ({page_table.dims[1]}) * "
        f"block_size ({size})",
    )
    if places is None:
        require(
            batch_idx < page_table.dims[0], "Batch idx must be within the page_table batch size"
        )
        require(
            users == 1,
            f"When no batch_idx_tensor is provided, input_batch must be 1 (got {users})",
        )
        return
    require(places.dtype in _INTEGERS, "Batch idx tensor must be an integer type")
    require(
        places.logical_volume() == users,
        f"Batch idx tensor must have input_tensor batch dim ({users}) elements, got "
        f"{places.logical_volume()}",
    )


def check_dense_fill(cache: Tensor, x: Tensor, batch_idx: int) -> None:
    """One prompt into one row."""
    users, heads, length, width = x.dims
    for name, got, wanted in (
        ("width", width, cache.dims[3]),
        ("height", heads, cache.dims[1]),
        ("batch size", users, 1),
    ):
        require(got == wanted, f"Input tensor {name} must be {wanted} but got {got}")
    require(x.dtype is cache.dtype, "Input and cache tensors must have same dtype!")
    require(
        batch_idx < cache.dims[0],
        f"Batch index ({batch_idx}) must be less than cache tensor batch size ({cache.dims[0]})",
    )
    require(
        length <= cache.dims[2],
        f"Fill update_idx (0) + input tensor height ({length}) must be <= cache tensor height "
        f"({cache.dims[2]})",
    )
