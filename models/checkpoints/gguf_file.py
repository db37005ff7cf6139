"""Reads a GGUF file: metadata, tensor table, and single tensors dequantised by the gguf library.

The header is walked here and not by gguf.GGUFReader, which builds several numpy arrays for every
string of the vocabulary: 2.4 s for 49,152 tokens against 0.1 s. gguf.py gives canonical names.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (little-endian, versions 2 and 3).
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import _type_traits, dequantize

from models.fields import Fields, is_there, open_file

_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?")))
_SCALARS |= {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PLAIN |= {"F64": torch.float64}
_QUANTISED = frozenset(_type_traits) - {GGMLQuantizationType.BF16}
_MAX_DIMS = 8  # the format has 4
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")  # how llama.cpp names the parts of a model
_CHUNK_ELEMENTS = 4 * 2**20  # dequantised at a time: the library makes several copies


@dataclass(frozen=True)
class GgufTensor:
    """Place and type of one stored tensor; `shape` in torch's order."""

    path: Path  # the part of a split model that holds it
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    num_bytes: int


class GgufFile:
    """Metadata and tensors of a model: one file, or the parts that llama.cpp splits it into."""

    def __init__(self, path: str | Path) -> None:
        """`path` is the file, or the first part."""
        self.path = Path(path)
        self._maps: dict[Path, mmap.mmap] = {}
        header = _Header(self.path, self._mapped(self.path))
        self.fields, self.tensors = header.fields, header.tensors
        self.metadata = Fields(self.fields, self.path)
        self.paths = self._parts()
        for number, part in enumerate(self.paths[1:], 1):
            self._add(number, _Header(part, self._mapped(part)))
        self.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the maps; `read` maps again, and the headers stay known.

        What still points into a map (a tensor on its way, a traceback) keeps it until it is gone.
        """
        self._maps.clear()

    def _mapped(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with open_file(path) as stream:
                try:
                    self._maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:
                    raise ValueError(f"cannot read {path}: {error}") from error
        return self._maps[path]

    def _parts(self) -> list[Path]:
        """All parts of a split model in order; ValueError names one that is missing."""
        count = self.metadata.integer("split.count", 0, 2**16, 0)
        if count < 2:
            return [self.path]
        if self.metadata.integer("split.no", 0, 2**16):
            raise ValueError(f"{self.path} is not the first of {count} parts: name that one")
        parts = [split_part(self.path, number, count) for number in range(count)]
        missing = [part.name for part in parts if not is_there(part)]
        if missing:
            raise ValueError(
                f"{self.path} is the first of {count} parts: {', '.join(missing[:3])} is missing "
                "beside it (llama-gguf-split --merge makes one file of them)"
            )
        return parts

    def _add(self, number: int, part: _Header) -> None:
        metadata = Fields(part.fields, part.path)
        if metadata.integer("split.no", 0, 2**16, None) != number:
            raise ValueError(f"{part.path} says it is not part {number + 1} of its model")
        twice = self.tensors.keys() & part.tensors.keys()
        if twice:
            raise ValueError(f"{part.path} holds {min(twice)}, as another part does")
        self.tensors |= part.tensors

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

    def check_readable(self, names: Iterable[str]) -> None:
        """Refuse types that hold no weights, before anything is read."""
        for name in names:
            kind = self.tensors[name].kind
            if kind.name not in _PLAIN and kind not in _QUANTISED:
                known = ", ".join([*_PLAIN, *sorted(known.name for known in _QUANTISED)])
                raise ValueError(f"{self.path}: {name} has type {kind.name}; read are {known}")

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor, or some of its rows: float types as stored, quantised ones as float32."""
        self.check_readable([name])
        entry = self.tensors[name]
        start, stop = rows or (0, entry.shape[0])
        row_bytes = entry.num_bytes // entry.shape[0]
        row_elements = math.prod(entry.shape[1:])
        begin = entry.offset + start * row_bytes
        content = self._mapped(entry.path)
        raw = np.frombuffer(content, np.uint8, (stop - start) * row_bytes, begin)
        shape = (stop - start, *entry.shape[1:])
        if entry.kind.name in _PLAIN:
            stored = torch.from_numpy(raw.copy()).view(_PLAIN[entry.kind.name]).reshape(shape)
            return stored.float() if stored.dtype is torch.float64 else stored
        out = np.empty((stop - start, row_elements), np.float32)
        raw = raw.reshape(stop - start, row_bytes)
        step = max(1, _CHUNK_ELEMENTS // row_elements)
        for row in range(0, stop - start, step):
            out[row : row + step] = dequantize(raw[row : row + step], entry.kind)
        return torch.from_numpy(out).reshape(shape)


def split_part(path: Path, number: int, count: int) -> Path:
    """The file of a part, counted from 0, of the split model that `path` is a part of."""
    stem = SPLIT.sub("", path.name)
    return path.with_name(f"{stem}-{number + 1:05}-of-{count:05}.gguf")


class _Header:
    """What one file says of itself: metadata and the table of its tensors."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self._map, self._at = path, content, 0
        try:
            self._read()
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
            raise ValueError(f"{path} is not a whole GGUF file: its header breaks off") from error
        except RecursionError:
            raise ValueError(f"{path}: lists in its metadata are nested too deeply") from None
        del self._map

    def _read(self) -> None:
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
        align = Fields(self.fields, self.path).integer("general.alignment", 1, 2**20, 32)
        data = -(-self._at // align) * align
        self.tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in infos:
            if name in self.tensors:
                raise ValueError(f"{self.path} holds {name} twice")
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if not shape or 0 in shape or shape[-1] % block:
                found = list(shape)[:4]
                raise ValueError(f"{self.path}: {name} is {found}, no shape for {kind.name}")
            num_bytes = math.prod(shape) // block * block_bytes
            if data + offset + num_bytes > len(self._map):
                raise ValueError(f"{self.path} is cut short: {name} lies past its end")
            self.tensors[name] = GgufTensor(self.path, shape, kind, data + offset, num_bytes)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        num_dims = self._scalar("I")
        if num_dims > _MAX_DIMS:
            raise ValueError(f"{self.path}: {name} has {num_dims} dimensions")
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
