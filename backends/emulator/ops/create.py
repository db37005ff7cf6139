"""Tensors made on the device, and given back."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

from backends.emulator.api.types import DRAM_MEMORY_CONFIG, DataType, Layout, MemoryConfig
from backends.emulator.chip.device import MeshDevice
from backends.emulator.chip.tensor import Tensor
from backends.emulator.kv import alike
from backends.emulator.launch import op, require
from backends.emulator.numerics.formats import to_format


def _make(
    shape: Sequence[int],
    value: float,
    dtype: DataType | None,
    layout: Layout | None,
    device: MeshDevice | None,
    memory: MemoryConfig | None,
) -> Tensor:
    require(device is not None, "the emulator makes tensors on a device: give one")
    assert device is not None
    dtype, layout = dtype or DataType.BFLOAT16, layout or Layout.ROW_MAJOR
    tensor = Tensor(None, tuple(shape), dtype, layout, memory or DRAM_MEMORY_CONFIG, device)
    device.allocate(tensor)  # a full memory refuses before anything is really allocated
    tensor.forms = {}  # values come from the host, so they may be a constant operand
    if not device.is_meta:
        # chips differ in what they will write here
        tensor.data = _zeros((*device.shape, *shape), dtype.carrier, device.torch_device)
        if value:
            tensor.data += to_format(torch.full((16,), float(value)), dtype)[0]
        else:
            alike.note_zeros(tensor.data)
    return tensor


def _zeros(shape: Sequence[int], dtype: torch.dtype, torch_device: str) -> torch.Tensor:
    """Zeros; many of the host's take no memory before they are written.

    They are mapped: the heap, which keeps what is freed (backends/allocator.py), would be cleared.
    """
    size = math.prod(shape) * dtype.itemsize
    if torch_device != "cpu" or size < mmap.PAGESIZE:
        return torch.zeros(shape, dtype=dtype, device=torch_device)
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)


@op("empty")
def empty(
    shape: Sequence[int],
    dtype: DataType = DataType.BFLOAT16,
    layout: Layout = Layout.ROW_MAJOR,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    """Memory whose values mean nothing (zeros here)."""
    return _make(shape, 0, dtype, layout, device, memory_config)


@op("zeros")
def zeros(
    shape: Sequence[int],
    dtype: DataType | None = None,
    layout: Layout | None = None,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    return _make(shape, 0, dtype, layout, device, memory_config)


@op("full")
def full(
    shape: Sequence[int],
    fill_value: float,
    dtype: DataType | None = None,
    layout: Layout | None = None,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    return _make(shape, fill_value, dtype, layout, device, memory_config)


@op("deallocate")
def deallocate(tensor: Tensor, force: bool = True) -> None:
    """Give the buffer back; using the tensor afterwards is an error."""
    device = tensor.device()
    if device is None:
        return
    if tensor._allocation is not None:
        tensor._allocation.free()
    if device.capturing is None:
        tensor.data = None
