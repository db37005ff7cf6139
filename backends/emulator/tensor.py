"""A tensor spread over a mesh: one torch tensor with two leading mesh dims.

Each mesh dim is the mesh's size (every chip has its own values) or 1 (all chips share them), so
replicated work is done once and an op on a mesh is one batched torch op. Padding to whole tiles is
never stored; `padded_shape` follows from the layout.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch

from backends.emulator.types import (
    DRAM_MEMORY_CONFIG,
    TILE,
    BufferType,
    DataType,
    Layout,
    MemoryConfig,
)
from backends.op_record import TensorSpec

if TYPE_CHECKING:
    from backends.emulator.device import MeshDevice

_ids = itertools.count(1)


class Shape(tuple):
    """Logical shape of one chip's part."""

    __slots__ = ()

    @property
    def rank(self) -> int:
        return len(self)

    def __repr__(self) -> str:
        return f"Shape({list(self)})"


def padded(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Shape in memory: tiles are whole in the last two dims."""
    if layout is Layout.ROW_MAJOR or not shape:
        return shape
    tail = [-(-n // TILE) * TILE for n in shape[-2:]]
    return (*shape[:-2], *tail)


def stored_bytes(shape: tuple[int, ...], dtype: DataType, layout: Layout) -> int:
    """Bytes of one chip's part as the device stores it."""
    if layout is Layout.TILE:
        count = math.prod(padded(shape if len(shape) > 1 else (1, *shape), layout))
        return count // TILE**2 * dtype.tile_bytes
    return math.prod(shape) * dtype.tile_bytes // TILE**2


class Tensor:
    """Values (`data`, None on meta devices) and placement of one TT-NN tensor."""

    __slots__ = (
        "data",
        "shape",
        "dtype",
        "layout",
        "_memory",
        "_device",
        "tensor_id",
        "_allocation",
        "derived",
        "__weakref__",
    )

    def __init__(
        self,
        data: torch.Tensor | None,
        shape: tuple[int, ...],
        dtype: DataType,
        layout: Layout,
        memory: MemoryConfig = DRAM_MEMORY_CONFIG,
        device: MeshDevice | None = None,
    ) -> None:
        self.data = data
        self.shape = Shape(shape)
        self.dtype, self.layout = dtype, layout
        self._memory, self._device = memory, device
        self.tensor_id = next(_ids)
        self._allocation: Any = None
        self.derived: dict[Any, Any] | None = None  # forms of a constant that kernels keep

    def __del__(self) -> None:
        if self._allocation is not None:
            self._allocation.free()

    @property
    def padded_shape(self) -> Shape:
        return Shape(padded(self.shape, self.layout))

    def memory_config(self) -> MemoryConfig:
        return self._memory

    def device(self) -> MeshDevice | None:
        return self._device

    def is_sharded(self) -> bool:
        return self._memory.is_sharded()

    def is_allocated(self) -> bool:
        return self._device is None or self._allocation is None or self._allocation.alive

    def buffer_bytes(self) -> int:
        """Bytes on one chip, padding included."""
        return stored_bytes(self.shape, self.dtype, self.layout)

    def spec(self) -> TensorSpec:
        """The record of this tensor's placement."""
        memory, shard = self._memory, self._memory.shard_spec
        on_host = self._device is None
        return TensorSpec(
            tuple(self.shape),
            tuple(self.padded_shape),
            self.dtype.name.lower(),
            self.layout.name,
            "HOST" if on_host else memory.buffer_type.name,
            memory.memory_layout.name,
            None if shard is None else tuple(shard.shape),
            "" if shard is None else str(shard.grid),
        )

    def in_dram(self) -> bool:
        return self._device is not None and self._memory.buffer_type is BufferType.DRAM

    def __repr__(self) -> str:
        return f"Tensor({list(self.shape)}, {self.dtype}, {self.layout}, {self._memory})"
