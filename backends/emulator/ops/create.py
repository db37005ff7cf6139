"""Tensors made on the device, and given back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.emulator.device import MeshDevice
from backends.emulator.formats import to_format
from backends.emulator.launch import op, require
from backends.emulator.tensor import Tensor
from backends.emulator.types import DRAM_MEMORY_CONFIG, DataType, Layout, MemoryConfig


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
        # chips differ in what they will write here; zero pages of the host cost nothing
        whole = (*device.shape, *shape)
        tensor.data = torch.zeros(whole, dtype=dtype.carrier, device=device.torch_device)
        if value:
            tensor.data += to_format(torch.full((16,), float(value)), dtype)[0]
    return tensor


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
