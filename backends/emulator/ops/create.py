"""Tensors made on the device, and given back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.emulator.device import MeshDevice
from backends.emulator.formats import to_format
from backends.emulator.launch import op, require
from backends.emulator.tensor import Tensor
from backends.emulator.trace import refuse_during_capture
from backends.emulator.types import DRAM_MEMORY_CONFIG, DataType, Layout, MemoryConfig


def _make(
    shape: Sequence[int],
    value: float,
    dtype: DataType,
    layout: Layout,
    device: MeshDevice,
    memory: MemoryConfig | None,
) -> Tensor:
    require(
        not dtype.is_block or layout is Layout.TILE,
        f"Only TILE layout is supported for {dtype.name} dtype!",
    )
    refuse_during_capture(device, "Writes")
    tensor = Tensor(None, tuple(shape), dtype, layout, memory or DRAM_MEMORY_CONFIG, device)
    device.allocate(tensor)  # a full memory refuses before anything is really allocated
    if not device.is_meta:
        mesh = tuple(device.shape)
        # chips differ in what they will write here; zero pages of the host cost nothing
        base = torch.zeros((*mesh, *shape), dtype=dtype.carrier, device=device.torch_device)
        if value:
            base += to_format(torch.full((16,), float(value)), dtype)[0]
        tensor.data = base
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
    dtype: DataType = DataType.BFLOAT16,
    layout: Layout = Layout.ROW_MAJOR,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    return _make(shape, 0, dtype, layout, device, memory_config)


@op("full")
def full(
    shape: Sequence[int],
    fill_value: float,
    dtype: DataType = DataType.BFLOAT16,
    layout: Layout = Layout.ROW_MAJOR,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
) -> Tensor:
    return _make(shape, fill_value, dtype, layout, device, memory_config)


@op("deallocate")
def deallocate(tensor: Tensor, force: bool = True) -> None:
    """Give the buffer back; using the tensor afterwards is an error."""
    device = tensor.device()
    if tensor._allocation is not None:
        tensor._allocation.free()
    if device is not None and device.capturing is None:
        tensor.data = None
