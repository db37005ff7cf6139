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

from backends.emulator.api.types import DataType, Layout
from backends.emulator.chip.device import MeshDevice
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import op, require
from backends.emulator.numerics.tiles import Packed, Store, packed, packing
from backends.emulator.ops.host import to_device

_LARGE_BYTES = 16 << 20
_ROOM_BYTES = 4 << 20  # that values pass through
_ALIGNMENT = 4096  # of memory, places and sizes in direct writes
_own = threading.local()  # room of each thread that writes
_TYPE_NAMES = {
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
}


@op("dump_tensor")
def dump_tensor(file_name: str | Path, tensor: Tensor) -> None:
    """Write a host tensor to one file, a weight in a block format packed."""
    data = tensor.data
    require(data is not None, "a tensor without values cannot be written")
    assert data is not None
    spec: dict[str, object] = {"dtype": tensor.dtype.name, "layout": tensor.layout.name}
    weight = packed(data) if tensor.dtype.is_block else None
    if weight is not None:
        spec |= {"packing": packing(), "shape": list(data.shape)}
        store = weight.store
        assert store.mantissas is not None and store.exponents is not None
        parts = {"mantissas": store.mantissas, "exponents": store.exponents, "spans": store.spans}
    else:
        # dims from slowest to fastest in memory: transposed weights stay as matmul wants them
        order = sorted(range(data.dim()), key=lambda dim: -data.stride(dim))
        spec["order"] = order
        parts = {"data": data.permute(order).contiguous()}
    header = _header(parts, {"tensor": json.dumps(spec)})
    is_large = sum(part.nbytes for part in parts.values()) >= _LARGE_BYTES
    direct = getattr(os, "O_DIRECT", 0) if is_large else 0
    try:
        _write(file_name, header, parts, direct)
    except OSError as error:
        if not direct or error.errno != errno.EINVAL:
            raise
        _write(file_name, header, parts, 0)  # not every file system can


def _header(parts: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """What a safetensors file begins with, up to a whole page: values lie as loops like them."""
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, part in parts.items():
        kind, first, end = _TYPE_NAMES[part.dtype], end, end + part.nbytes
        entries[name] = {"dtype": kind, "shape": list(part.shape), "data_offsets": [first, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _write(path: str | Path, header: bytes, parts: dict[str, torch.Tensor], direct: int) -> None:
    """Header and values, whole pages at a time; OSError where the disk is full."""
    room = getattr(_own, "room", None)
    if room is None:  # direct writes want memory that begins with a page
        room = _own.room = mmap.mmap(-1, _ROOM_BYTES)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | direct
    descriptor = os.open(path, flags, 0o644)
    used = total = 0
    try:
        for piece in (memoryview(header), *map(_bytes_of, parts.values())):
            done = 0
            while done < len(piece):
                count = min(len(piece) - done, _ROOM_BYTES - used)
                room[used : used + count] = piece[done : done + count]
                done, used = done + count, used + count
                if used == _ROOM_BYTES:
                    _write_all(descriptor, room, used)
                    used = 0
            total += len(piece)
        _write_all(descriptor, room, -(-used // _ALIGNMENT) * _ALIGNMENT)
        os.ftruncate(descriptor, total)
    finally:
        os.close(descriptor)


def _bytes_of(data: torch.Tensor) -> memoryview:
    return memoryview(data.contiguous().view(-1).view(torch.uint8).numpy())


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
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if "packing" in spec:
        if spec["packing"] != packing():
            raise ValueError("it is packed for the loops of another processor")
        store = Store(parts["spans"], None, parts["mantissas"], parts["exponents"])
        store.check()
        data: torch.Tensor = Packed(store, spec["shape"])
    else:
        data = parts["data"]
        data = data.permute([spec["order"].index(dim) for dim in range(data.dim())])
    tensor = Tensor(data, tuple(data.shape[2:]), DataType[spec["dtype"]], Layout[spec["layout"]])
    return tensor if device is None else to_device(tensor, device)
