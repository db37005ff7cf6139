"""Host tensors in safetensors files: values as carried, a few words about them, no code.

Large ones go to the disk past the page cache, which is several times faster than through it and
leaves what others have there alone.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import threading
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from backends.emulator.api.types import DataType, Layout
from backends.emulator.chip.device import MeshDevice
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import op, require
from backends.emulator.ops.host import to_device

_LARGE_BYTES = 16 << 20
_ROOM_BYTES = 4 << 20  # that values pass through
_ALIGNMENT = 4096  # of memory, places and sizes in direct writes
_own = threading.local()  # room of each thread that writes
_TYPE_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int32: "I32"}


@op("dump_tensor")
def dump_tensor(file_name: str | Path, tensor: Tensor) -> None:
    """Write a host tensor to one file."""
    require(tensor.data is not None, "a tensor without values cannot be written")
    assert tensor.data is not None
    # dims from slowest to fastest in memory: transposed weights stay as matmul wants them
    order = sorted(range(tensor.data.dim()), key=lambda dim: -tensor.data.stride(dim))
    spec = {"dtype": tensor.dtype.name, "layout": tensor.layout.name, "order": order}
    data = tensor.data.permute(order).contiguous()
    metadata = {"tensor": json.dumps(spec)}
    if data.nbytes < _LARGE_BYTES or data.dtype not in _TYPE_NAMES:
        save_file({"data": data}, str(file_name), metadata=metadata)
        return
    if not hasattr(os, "O_DIRECT"):
        save_file({"data": data}, str(file_name), metadata=metadata)
        return
    try:
        _write_directly(file_name, data, metadata)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        save_file({"data": data}, str(file_name), metadata=metadata)  # not every file system can


def _write_directly(path: str | Path, data: torch.Tensor, metadata: dict[str, str]) -> None:
    """What save_file writes, the header padded to whole pages; OSError where the disk is full."""
    entry = {
        "dtype": _TYPE_NAMES[data.dtype],
        "shape": list(data.shape),
        "data_offsets": [0, data.nbytes],
    }
    header = json.dumps({"__metadata__": metadata, "data": entry}).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    values = memoryview(data.view(torch.uint8).view(-1).numpy())
    room = getattr(_own, "room", None)
    if room is None:  # direct writes want memory that begins with a page
        room = _own.room = mmap.mmap(-1, _ROOM_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o644)
    try:
        room[: 8 + len(header)] = struct.pack("<Q", len(header)) + header
        _write_all(descriptor, room, 8 + len(header))
        for first in range(0, data.nbytes, _ROOM_BYTES):
            part = values[first : first + _ROOM_BYTES]
            room[: len(part)] = part
            _write_all(descriptor, room, -(-len(part) // _ALIGNMENT) * _ALIGNMENT)
        os.ftruncate(descriptor, 8 + len(header) + data.nbytes)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, room: mmap.mmap, size: int) -> None:
    written = 0
    with memoryview(room) as view:
        while written < size:
            written += os.write(descriptor, view[written:size])


@op("load_tensor")
def load_tensor(file_name: str | Path, *, device: MeshDevice | None = None) -> Tensor:
    """Map a file written by dump_tensor; nothing is read until it is used."""
    with safe_open(str(file_name), framework="pt") as file:
        spec = json.loads(file.metadata()["tensor"])
        data = file.get_tensor("data")
    data = data.permute([spec["order"].index(dim) for dim in range(data.dim())])
    tensor = Tensor(data, tuple(data.shape[2:]), DataType[spec["dtype"]], Layout[spec["layout"]])
    return tensor if device is None else to_device(tensor, device)
