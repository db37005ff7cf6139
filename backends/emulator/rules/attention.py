"""What attention accepts, what it costs and how much of its operands the multiplier sees."""

from __future__ import annotations

import math
import struct
from typing import Any

from backends.emulator.api.configs import grid_xy
from backends.emulator.api.types import (
    DRAM_MEMORY_CONFIG,
    TILE,
    DataType,
    Layout,
    MathFidelity,
    MemoryConfig,
    TensorMemoryLayout,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import fatal, require
from backends.emulator.numerics import fidelity as multiplier

_NARROW = (DataType.BFLOAT16, DataType.BFLOAT8_B, DataType.BFLOAT4_B)


def significant_bits(q: Tensor, k: Tensor, kernel: Any) -> tuple[int | None, int | None]:
    """Bits that queries, and keys and values, are cut to; None: they are used as they are."""
    kind = MathFidelity.HiFi2 if kernel is None else kernel.math_fidelity
    return multiplier.in0_bits(q.dtype, kind), multiplier.in1_bits(k.dtype, kind)


def scale_of(scale: float | None, q: Tensor) -> float:
    """What scores are multiplied by: 1 / sqrt(head width) where nothing else is said."""
    return q.dims[-1] ** -0.5 if scale is None else scale


def interleaved(memory: MemoryConfig | None) -> MemoryConfig:
    """The memory asked for, DRAM without a word; shards must be said."""
    memory = memory or DRAM_MEMORY_CONFIG
    require(
        not memory.is_sharded() or memory.shard_spec is not None,
        "a sharded memory config without shards: bad optional access",
    )
    return memory


def check_operands(q: Tensor, *kv: Tensor) -> None:
    """Tiles of a format that the multiplier takes."""
    for tensor in (q, *kv):
        require(tensor.layout is Layout.TILE, "Inputs to SDPA must be tilized")
        require(
            tensor.dtype in _NARROW,
            "Data type of input tensor must be BFLOAT16, BFLOAT8_B, or BFLOAT4_B and is "
            f"{tensor.dtype}",
        )


def check_heads(q: Tensor, k: Tensor) -> None:
    """Each key-value head serves as many queries."""
    heads, kv_heads = q.dims[1], k.dims[1]
    require(
        kv_heads > 0 and heads >= kv_heads and heads % kv_heads == 0,
        "Q num_heads must be >= K num_heads and divisible by K num_heads. "
        f"Got Q: {heads}, K: {kv_heads}",
    )


def check_whole(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> None:
    """Queries over keys and values of their own prompt."""
    check_operands(q, k, v)
    require(
        not is_causal or q.dims[2] == k.dims[2],
        f"Causal SDPA requires Q and K to have the same sequence length. Got Q: {q.dims[2]}, "
        f"K: {k.dims[2]}",
    )
    names = ("batch", "num_heads", "sequence length", "hidden dim")
    wanted = (q.dims[0], k.dims[1], k.dims[2], q.dims[3])
    for name, want, *got in zip(names, wanted, k.dims, v.dims, strict=True):
        require(got == [want, want], f"K and V {name} must match. Got K: {got[0]}, V: {got[1]}")
    check_heads(q, k)


def check_mask(q: Tensor, k: Tensor, mask: Tensor | None, *, is_causal: bool) -> None:
    """A mask says for every query and key whether they meet."""
    if mask is None:
        return
    require(not is_causal, "Causal attention and a mask cannot be combined")
    require(mask.layout is Layout.TILE, "Mask must be tilized")
    require(mask.dtype in _NARROW, f"Mask must be in BF16, BFP8 or BFP4 dataformat: {mask.dtype}")
    require(
        mask.dims[0] in (1, q.dims[0]) and mask.dims[1] in (1, q.dims[1]),
        "Mask batch and heads must be 1 or match Q",
    )
    require(mask.dims[2] == q.dims[2], "Mask sequence length must match Q sequence length")
    require(mask.dims[3] == k.dims[2], "Mask sequence length must match K sequence length")


def check_program(q: Tensor, config: Any) -> None:
    """Chunks are whole tiles on a grid that exists."""
    if config is None:
        return
    for name in ("q_chunk_size", "k_chunk_size"):
        size = getattr(config, name)
        require(
            size > 0 and size % TILE == 0,
            f"{name} must be a positive multiple of TILE_SIZE. Got {name}: {size}, TILE_SIZE: 32",
        )
    check_grid(q, config)


def check_grid(q: Tensor, config: Any) -> None:
    """No more cores than the device has."""
    if config is None or q.device() is None:
        return
    asked = math.prod(grid_xy(config.compute_with_storage_grid_size))
    have = math.prod(grid_xy(q.device().compute_with_storage_grid_size()))  # type: ignore[union-attr]
    require(
        asked <= have,
        f"Provided grid must not contain more cores than the device. Got {asked} cores, expected "
        f"at most {have} cores.",
    )


def check_chunked(q: Tensor, k: Tensor, table: Tensor, start: int | None, config: Any) -> None:
    """A chunk over the pages of its user."""
    require(table.dtype is DataType.INT32, "Page table must be int32")
    require(
        table.dims[0] == q.dims[0],
        f"Page table batch size must match input batch size. Got Page table: {table.dims[0]}, "
        f"Input: {q.dims[0]}",
    )
    check_heads(q, k)
    if start is None:
        return
    require(start >= 0, "chunk_start_idx must be non-negative")
    size = TILE if config is None else config.q_chunk_size
    # without a config the kernel takes any start
    require(
        config is None or start % size == 0,
        f"chunk_start_idx must be a multiple of q_chunk_size. Got chunk_start_idx: {start}, "
        f"q_chunk_size: {size}",
    )
    held = table.dims[1] * k.dims[2]
    require(
        held >= q.dims[2] + start,
        "K's sequence length must be >= Q's sequence length + chunk_start_idx. "
        f"Got K: {held}, Q: {q.dims[2]}, chunk_start_idx: {start}",
    )


def check_shared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    ring: int,
    start: int | None,
    config: Any,
) -> None:
    """Queries that a row of chips shares, two pieces each, of whole tiles."""
    device = q.device()
    if table is None:
        check_whole(q, k, v, is_causal=True)
    else:
        check_operands(q, k, v)
        check_chunked(q, k, table, start, config)
    check_program(q, config)
    require(
        q.dtype is k.dtype is v.dtype,
        f"All tensors must have the same dtype. Expected {q.dtype}, got {k.dtype}",
    )
    require(
        device is not None and tuple(device.shape)[1] == ring,
        f"a ring of {ring} needs rows of as many chips",
    )
    require(
        q.dims[2] % (2 * ring * TILE) == 0,
        f"Query sequence length must be a multiple of 2 * ring_size tiles. Got {q.dims[2]}",
    )


def check_start_tensor(start: Tensor | None, index: int | None, table: Tensor) -> None:
    """A chunk begins at an integer, or where a tensor of one says, which goes first."""
    if start is None:
        require(
            index is not None,
            "chunk_start_idx (int) is required for legacy chunked SDPA. For flexible path use "
            "chunk_start_idx_tensor=...",
        )
        return
    require(
        start.dtype is DataType.INT32, f"chunk_start_idx tensor must be int32. Got {start.dtype}"
    )
    require(start.dims == (1,), f"chunk_start_idx tensor must have shape [1]. Got {start.shape}")
    require(4 * table.dims[1] % 32 == 0, "page table stick size must be a multiple of 32")


def check_float32(scale: float | None) -> None:
    """The binding of chunked attention takes a float only if it is one of 32 bits."""
    if scale is not None and struct.unpack("f", struct.pack("f", scale))[0] != scale:
        raise TypeError(
            "ttnn.transformer.chunked_scaled_dot_product_attention(): incompatible function "
            f"arguments: scale {scale!r} is not exactly a float32"
        )


def check_decode(
    q: Tensor, k: Tensor, positions: Tensor, table: Tensor | None, memory: MemoryConfig
) -> None:
    """One query per user over its pages or its row."""
    _, users, heads, _ = q.dims
    paged = table is not None
    if q.dtype not in _NARROW:
        fatal(f"Unsupported data type {q.dtype}.")
    kinds = (DataType.INT32,) if paged else (DataType.INT32, DataType.UINT32)
    require(positions.dtype in kinds, f"Expect cur_pos to be INT32, got {positions.dtype}")
    counts = [positions.logical_volume(), table.dims[0] if table is not None else users]
    require(
        counts == [users, users],
        f"cur_pos must have batch size equal to Q, got {counts[0]} and {counts[1]} for {users}",
    )
    if table is not None:
        require(table.dtype is DataType.INT32, "SDPA currently only supports INT32 datatype")
        require(table.layout is Layout.ROW_MAJOR, "page_table must be in row major layout")
    else:
        require(k.dims[0] == users, f"K tensor batch size ({k.dims[0]}) must equal B ({users})")
        require(
            k.dims[2] % TILE == 0,
            f"Chunk size must be multiple of 32, which {k.dims[2]} positions do not allow",
        )
    if k.dims[1] > 1:
        require(
            q.dtype is DataType.BFLOAT16, f"GQA expects BFLOAT16 input tensor, but got {q.dtype}"
        )
        require(not memory.is_sharded(), "Sharded output not supported for GQA")
    if q.layout is Layout.ROW_MAJOR:
        require(
            memory.memory_layout is TensorMemoryLayout.HEIGHT_SHARDED,
            "ROW_MAJOR Q produces a ROW_MAJOR output, which requires a HEIGHT_SHARDED output "
            f"memory config; got TensorMemoryLayout::{memory.memory_layout.name}",
        )
    require(
        heads % k.dims[1] == 0,
        f"GQA expects Q to have a multiple of K heads, but got {heads} and {k.dims[1]}",
    )


def check_decode_program(q: Tensor, config: Any) -> None:
    """Chunks of keys are powers of two, on a grid that exists."""
    if config is None:
        return
    size = config.k_chunk_size
    require(size & (size - 1) == 0, f"User provided k_chunk_size must be power of 2, got: {size}")
    check_grid(q, config)
