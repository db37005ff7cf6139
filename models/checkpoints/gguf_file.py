"""Reads a GGUF file: metadata, tensor table, and single tensors dequantised by the gguf library.

The header is walked here and not by gguf.GGUFReader, which builds several numpy arrays for every
string of the vocabulary: 2.4 s for 49,152 tokens against 0.1 s. gguf.py gives canonical names.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (little-endian, versions 2 and 3).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?")))
_SCALARS |= {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_ELEMENTS = 4 * 2**20  # dequantised at a time: the library makes several copies


@dataclass(frozen=True)
class GgufTensor:
    """Place and type of one stored tensor; `shape` in torch's order."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    num_bytes: int


class GgufFile:
    """Metadata and tensors of one file; a context manager."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = self._mapped()
        self._at = 0
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
            raise ValueError(f"{path} is not a whole GGUF file: its header breaks off") from error

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; `read` maps it again, and the header stays known."""
        self._map.close()

    def _mapped(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as stream:
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {self.path}: {error}") from error

    def field(self, key: str, default: Any = ...) -> Any:
        """One metadata value; without a default, its absence is an error."""
        value = self.fields.get(key, default)
        if value is ...:
            raise ValueError(f"{self.path}: GGUF metadata lacks {key}")
        return value

    def has_tensor(self, name: str) -> bool:
        """Whether the file stores this name."""
        return name in self.tensors

    def vocab_size(self) -> int:
        """Rows of the embedding (metadata may count tokens without the padding)."""
        table = self.tensors.get("token_embd.weight")
        if table is None:
            raise ValueError(f"{self.path} has no token_embd.weight: it is not a language model")
        return table.shape[0]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor, or some of its rows: float types as stored, quantised ones as float32."""
        entry = self.tensors[name]
        if self._map.closed:
            self._map = self._mapped()
        start, stop = rows or (0, entry.shape[0])
        row_bytes = entry.num_bytes // entry.shape[0]
        row_elements = math.prod(entry.shape[1:])
        begin = entry.offset + start * row_bytes
        raw = np.frombuffer(self._map, np.uint8, (stop - start) * row_bytes, begin)
        shape = (stop - start, *entry.shape[1:])
        if entry.kind.name in _PLAIN:
            dtype = _PLAIN[entry.kind.name]
            return torch.from_numpy(raw.copy()).view(dtype).reshape(shape)
        out = np.empty((stop - start, row_elements), np.float32)
        raw = raw.reshape(stop - start, row_bytes)
        step = max(1, _CHUNK_ELEMENTS // row_elements)
        for row in range(0, stop - start, step):
            out[row : row + step] = dequantize(raw[row : row + step], entry.kind)
        return torch.from_numpy(out).reshape(shape)

    def _read_header(self) -> None:
        if self._map[:4] != b"GGUF":
            raise ValueError(f"{self.path} is not a GGUF file (it begins {self._map[:4]!r})")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise ValueError(f"{self.path} is GGUF version {version}: versions 2 and 3 are read")
        num_tensors, num_fields = self._scalar("Q"), self._scalar("Q")
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._string()
            self.fields[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(num_tensors)]
        align = int(self.fields.get("general.alignment", 32))
        data = -(-self._at // align) * align
        self.tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in infos:
            if name in self.tensors:
                raise ValueError(f"{self.path} holds {name} twice")
            block, block_bytes = GGML_QUANT_SIZES[kind]
            num_bytes = math.prod(shape) // block * block_bytes
            if data + offset + num_bytes > len(self._map):
                raise ValueError(f"{self.path} is cut short: {name} lies past its end")
            self.tensors[name] = GgufTensor(shape, kind, data + offset, num_bytes)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        num_dims = self._scalar("I")
        shape = tuple(self._scalar("Q") for _ in range(num_dims))[::-1]
        number = self._scalar("I")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise ValueError(f"{self.path}: {name} has unknown type {number}") from error
        return name, shape, kind, self._scalar("Q")

    def _scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self._map, self._at)[0]
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        size = self._scalar("Q")
        if self._at + size > len(self._map):
            raise IndexError("string past the end")
        text = self._map[self._at : self._at + size].decode()
        self._at += size
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind, size = self._scalar("I"), self._scalar("Q")
            if kind in _SCALARS:
                values = struct.unpack_from(f"<{size}{_SCALARS[kind]}", self._map, self._at)
                self._at += struct.calcsize(f"<{size}{_SCALARS[kind]}")
                return list(values)
            return [self._value(kind) for _ in range(size)]
        if kind not in _SCALARS:
            raise ValueError(f"{self.path}: metadata of unknown type {kind}")
        return self._scalar(_SCALARS[kind])
