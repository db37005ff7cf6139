"""The op list of a run: one OpRecord per TT-NN call, in one form for the emulator and the dry run.

Shapes are per device. `cost` is filled by the emulator (its ops know their arithmetic) and left
empty by the dry run. Next: backends/emulator/launch.py writes records.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

# bytes of a 32 x 32 tile; block formats store one exponent byte per 16 values
TILE_BYTES = {
    "bfloat16": 2048, "bfloat8_b": 1088, "bfloat4_b": 576, "float32": 4096,
    "uint32": 4096, "int32": 4096, "uint16": 2048, "uint8": 1024,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Placement of one tensor on one device; `shard` is (height, width) in elements."""

    shape: tuple[int, ...]
    padded_shape: tuple[int, ...]
    dtype: str  # "bfloat16", "bfloat8_b", ...
    layout: str  # "TILE" or "ROW_MAJOR"
    buffer: str  # "DRAM", "L1" or "HOST"
    memory_layout: str = "INTERLEAVED"  # or HEIGHT_/WIDTH_/BLOCK_SHARDED
    shard: tuple[int, int] | None = None
    cores: str = ""  # the shard grid as TT-NN prints it, e.g. "[0-0 - 7-3]"

    @property
    def stored_bytes(self) -> int:
        """Bytes of one chip's part, padding to tiles included."""
        return math.prod(self.padded_shape) * TILE_BYTES[self.dtype] // 1024

    @property
    def sharded_bytes(self) -> int:
        """The same where every shard is whole: what a kernel moves that goes shard by shard."""
        if self.shard is None:
            return self.stored_bytes
        rows, columns = math.prod(self.padded_shape[:-1]), self.padded_shape[-1]
        height, width = self.shard
        shards = -(-rows // height) * -(-columns // width)
        return shards * height * width * TILE_BYTES[self.dtype] // 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one op on one device: multiply-adds count as two FLOPs, bytes as stored.

    The op states it, nobody computes it again; an op that costs nothing launches nothing. What
    depends on data is stated for the most it can be: attributes `users` and `context` say of how
    many users and positions, and `cached_bytes` is the part of `dram_bytes` that shrinks with them.
    """

    flops: int = 0
    dram_bytes: int = 0
    cached_bytes: int = 0
    l1_bytes: int = 0
    link_bytes: int = 0  # bytes one chip sends over its busiest link direction


@dataclass(frozen=True, slots=True)
class OpRecord:
    """One TT-NN call: what went in, what came out, how it was placed."""

    name: str  # name below ttnn, e.g. "linear" or "experimental.paged_update_cache"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: dict[str, Any] = field(default_factory=dict)  # scalars and strings only
    scope: str = ""  # where in the model, e.g. "layers.3.attention"
    cost: Cost | None = None


def operand_bytes(operands: Iterable[TensorSpec], buffer: str) -> int:
    """Bytes of what lies in one kind of memory: the cost of going through all of it once."""
    return sum(tensor.stored_bytes for tensor in operands if tensor.buffer == buffer)


_recorders: list[list[OpRecord]] = []
_scopes: list[str] = []


@contextlib.contextmanager
def record_ops() -> Iterator[list[OpRecord]]:
    """Collect the record of every TT-NN call made inside the block."""
    records: list[OpRecord] = []
    _recorders.append(records)
    try:
        yield records
    finally:
        _recorders[:] = [kept for kept in _recorders if kept is not records]


@contextlib.contextmanager
def record_apart() -> Iterator[list[OpRecord]]:
    """Collect the record of every call made inside the block, for nobody else."""
    records: list[OpRecord] = []
    others = _recorders[:]
    _recorders[:] = [records]
    try:
        yield records
    finally:
        _recorders[:] = others


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Name the part of the model that the calls inside belong to; scopes nest with dots."""
    _scopes.append(name)
    try:
        yield
    finally:
        _scopes.pop()


def current_scope() -> str:
    """Dotted path of the scopes we are in."""
    return ".".join(_scopes)


def recording() -> bool:
    """Whether anybody listens; backends skip building records otherwise."""
    return bool(_recorders)


def append(record: OpRecord) -> None:
    """Hand one record to every open recorder."""
    for records in _recorders:
        records.append(record)
