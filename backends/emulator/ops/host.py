"""Between host and device: from_torch, to_torch, copies, parts of chips."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.api.types import DRAM_MEMORY_CONFIG, DataType, Layout, MemoryConfig
from backends.emulator.chip.device import MeshDevice
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import fatal, op, require
from backends.emulator.numerics.formats import to_format
from backends.emulator.ops import mesh_io  # noqa: F401  registers the mappers
from backends.emulator.ops.mesh_io import MeshComposer, MeshMapper, gather, spread
from backends.emulator.trace import refuse_during_capture

_DEFAULT_TYPES = {
    torch.float32: DataType.FLOAT32,
    torch.bfloat16: DataType.BFLOAT16,
    torch.float16: DataType.BFLOAT16,
    torch.int32: DataType.INT32,
    torch.uint32: DataType.UINT32,
    torch.int64: DataType.UINT32,
    torch.int16: DataType.UINT16,
    torch.uint16: DataType.UINT16,
    torch.uint8: DataType.UINT8,
    torch.bool: DataType.UINT8,
}
_TORCH_TYPES = {
    DataType.BFLOAT16: torch.bfloat16,
    DataType.UINT32: torch.uint32,
    DataType.UINT16: torch.uint16,
    DataType.UINT8: torch.uint8,
    DataType.INT32: torch.int32,
}


@op("from_torch")
def from_torch(
    tensor: torch.Tensor,
    dtype: DataType | None = None,
    *,
    layout: Layout | None = None,
    device: MeshDevice | None = None,
    memory_config: MemoryConfig | None = None,
    mesh_mapper: MeshMapper | None = None,
) -> Tensor:
    """Host tensor rounded to `dtype`; with `device`, on the device."""
    refuse_during_capture(device, "Writes")
    dtype = dtype or _DEFAULT_TYPES.get(tensor.dtype)
    if dtype is None:
        fatal(f"cannot convert torch type {tensor.dtype}: give a dtype")
    layout = layout or (Layout.TILE if dtype.is_block else Layout.ROW_MAJOR)
    require(
        not dtype.is_block or layout is Layout.TILE,
        "Layout must be Layout::TILE for bfloat8_b or bfloat4_b!",
    )
    meta = tensor.is_meta or (device is not None and device.is_meta)
    parts = spread(tensor.to("meta") if meta else tensor, mesh_mapper)
    data = None if meta else to_format(parts, dtype)
    if data is not None and data.data_ptr() == tensor.data_ptr():
        data = data.clone()  # the caller may change its tensor
    host = Tensor(data, tuple(parts.shape[2:]), dtype, layout, memory_config or DRAM_MEMORY_CONFIG)
    return host if device is None else to_device(host, device, memory_config)


@op("to_device")
def to_device(
    tensor: Tensor, device: MeshDevice, memory_config: MemoryConfig | None = None
) -> Tensor:
    """The tensor on the device; one that is there already stays."""
    refuse_during_capture(device, "Writes")
    if tensor.device() is device:
        return tensor
    memory = memory_config or tensor.memory_config()
    out = Tensor(None, tensor.dims, tensor.dtype, tensor.layout, memory, device)
    device.allocate(out)
    if tensor.data is not None and not device.is_meta:
        out.data = tensor.data.to(device.torch_device)
    if out.data is tensor.data:  # copies of one host tensor share what is made of its values
        tensor.forms = {} if tensor.forms is None else tensor.forms
        out.forms = tensor.forms
    else:
        out.forms = {}
    return out


@op("from_device")
def from_device(tensor: Tensor, blocking: bool = True) -> Tensor:
    refuse_during_capture(tensor.device(), "Reads")
    data = _values(tensor)
    data = None if data is None else data.clone()  # what is written later is not in the copy
    return Tensor(data, tensor.dims, tensor.dtype, tensor.layout, tensor.memory_config())


def _values(tensor: Tensor) -> torch.Tensor | None:
    """Values on the host; None for those of meta devices."""
    require(tensor.is_allocated(), "Buffer must be allocated on device before reading")
    if tensor.data is None:
        device = tensor.device()
        require(
            device is None or device.is_meta,
            "the tensor has no values: it belongs to a trace that has not been executed",
        )
        return None
    return tensor.data.cpu()


@op("to_torch")
def to_torch(
    tensor: Tensor,
    dtype: torch.dtype | None = None,
    *,
    torch_rank: int | None = None,
    mesh_composer: MeshComposer | None = None,
) -> torch.Tensor:
    """Values in torch's own type (block formats as float32); a mesh tensor needs a composer."""
    refuse_during_capture(tensor.device(), "Reads")
    data = _values(tensor)
    if data is None:
        data = torch.zeros((1, 1, *tensor.dims), dtype=tensor.dtype.carrier)
    whole = gather(data, mesh_composer)
    own = _TORCH_TYPES.get(tensor.dtype, torch.float32)
    whole = whole.view(own) if own is torch.uint32 else whole.to(own)
    while torch_rank is not None and whole.dim() > torch_rank:
        require(whole.shape[0] == 1, f"cannot squeeze {tuple(whole.shape)} to rank {torch_rank}")
        whole = whole[0]
    return whole if dtype is None else whole.to(dtype)


class _ChipPart(Tensor):
    """One chip's part; it reads whatever the mesh tensor holds when it is looked at."""

    __slots__ = ("_whole", "_place")

    def __init__(self, whole: Tensor, row: int, col: int) -> None:
        self._whole, self._place = whole, (row, col)
        super().__init__(
            None, whole.dims, whole.dtype, whole.layout, whole.memory_config(), whole.device()
        )
        self._allocation = whole._allocation

    @property
    def data(self) -> torch.Tensor | None:  # type: ignore[override]
        values = self._whole.data
        if values is None:
            return None
        row, col = (min(at, size - 1) for at, size in zip(self._place, values.shape, strict=False))
        return values[row : row + 1, col : col + 1]

    @data.setter
    def data(self, values: Any) -> None:
        """Its values are the mesh tensor's."""


@op("get_device_tensors")
def get_device_tensors(tensor: Tensor) -> list[Tensor]:
    """One tensor per chip, row by row; they share the mesh tensor's values."""
    device = tensor.device()
    if device is None and tensor.data is not None:
        rows, cols = tensor.data.shape[:2]
    else:
        rows, cols = device.shape if device is not None else (1, 1)
    return [_ChipPart(tensor, row, col) for row in range(rows) for col in range(cols)]


@op("copy_host_to_device_tensor")
def copy_host_to_device_tensor(
    host_tensor: Tensor, device_tensor: Tensor, cq_id: int | None = None
) -> None:
    device = device_tensor.device()
    refuse_during_capture(device, "Writes")
    require(host_tensor.device() is None, "Expected Tensor with HostStorage, got DEVICE")
    require(device is not None, "Expected Tensor with DeviceStorage, got HOST")
    for what in ("dims", "dtype", "layout"):
        same = getattr(host_tensor, what) == getattr(device_tensor, what)
        name = {"dims": "shape", "layout": "page config"}.get(what, what)
        require(same, f"Host tensor has different {name}")
    if device_tensor.data is not None and host_tensor.data is not None:
        device_tensor.data = host_tensor.data.to(device_tensor.data.device, copy=True)
