"""A tensor spread over a mesh: one torch tensor with two leading mesh dims.

Each mesh dim is the mesh's size (every chip has its own values) or 1 (all chips share them), so
replicated work is done once and an op on a mesh is one batched torch op. Padding to whole tiles is
never stored; `padded_shape` follows from the layout.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import torch

from backends.emulator.api.types import (
    DRAM_MEMORY_CONFIG,
    BufferType,
    DataType,
    Layout,
    MemoryConfig,
    Name,
    padded,
    stored_bytes,
)
from backends.emulator.chip.memory import Allocation
from backends.op_record import TensorSpec

_ids = itertools.count(1)


class StorageType(Name):
    """Where the values of a tensor are."""

    HOST = 0
    DEVICE = 1


class Shape(tuple):
    """Logical shape of one chip's part."""

    __slots__ = ()

    @property
    def rank(self) -> int:
        return len(self)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, list | tuple) else False

    __hash__ = tuple.__hash__

    def __repr__(self) -> str:
        return f"Shape({list(self)})"


class Tensor:
    """Values (`data`, None on meta devices) and placement of one TT-NN tensor."""

    __slots__ = (
        "data",
        "shape",
        "dims",
        "dtype",
        "layout",
        "_memory",
        "_device",
        "tensor_id",
        "_allocation",
        "forms",
        "__weakref__",
    )

    def __init__(
        self,
        data: torch.Tensor | None,
        shape: tuple[int, ...],
        dtype: DataType,
        layout: Layout,
        memory: MemoryConfig = DRAM_MEMORY_CONFIG,
        device: Any = None,  # the MeshDevice it lies on; None: the host
    ) -> None:
        self.data = data
        self.dims = tuple(shape)  # `shape` without its methods: cheap to hash and compare
        self.shape = Shape(self.dims)
        self.dtype, self.layout = dtype, layout
        self._memory, self._device = memory, device
        self.tensor_id = next(_ids)
        self._allocation: Allocation | None = None  # tensors that share a buffer share it
        self.forms: Any = None  # of a constant operand, see numerics/products.py

    @property
    def padded_shape(self) -> Shape:
        return Shape(padded(self.dims, self.layout))

    def memory_config(self) -> MemoryConfig:
        return self._memory

    def device(self) -> Any:
        """The MeshDevice it lies on; None: the host."""
        return self._device

    def storage_type(self) -> StorageType:
        return StorageType.HOST if self._device is None else StorageType.DEVICE

    def is_sharded(self) -> bool:
        return self._memory.is_sharded()

    def is_allocated(self) -> bool:
        return self._allocation is None or self._allocation.alive

    def volume(self) -> int:
        """Elements of one chip's part, padding included."""
        return math.prod(self.padded_shape)

    def logical_volume(self) -> int:
        """Elements of one chip's part."""
        return math.prod(self.dims)

    def buffer_bytes(self) -> int:
        """Bytes on one chip, padding included."""
        return stored_bytes(self.dims, self.dtype, self.layout)

    def buffer_address(self) -> int:
        """A number of its own for every buffer; not where it would lie on silicon."""
        return self.tensor_id

    def in_dram(self) -> bool:
        return self._device is not None and self._memory.buffer_type is BufferType.DRAM

    def spec(self) -> TensorSpec:
        """The record of this tensor's placement."""
        memory = self._memory if self._device is not None else None
        return _record(self.dims, self.dtype, self.layout, memory)

    def __repr__(self) -> str:
        return (
            f"ttnn.Tensor(shape={self.shape}, dtype={self.dtype}, layout={self.layout}, "
            f"memory_config={self._memory})"
        )


@lru_cache(maxsize=8192)
def _record(
    shape: tuple[int, ...], dtype: DataType, layout: Layout, memory: MemoryConfig | None
) -> TensorSpec:
    """`memory` None stands for the host."""
    shard = memory.shard_spec if memory is not None else None
    return TensorSpec(
        shape,
        padded(shape, layout),
        dtype.name.lower(),
        layout.name,
        "HOST" if memory is None else memory.buffer_type.name,
        "INTERLEAVED" if memory is None else memory.memory_layout.name,
        None if shard is None else (shard.shape[0], shard.shape[1]),
        "" if shard is None else str(shard.grid).strip("{}"),
    )
