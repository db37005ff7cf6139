"""Trace calls of the dry run: mock devices cannot capture, so a trace's rules are checked instead.

A captured pass runs like any other, but may compile no program and touch no host data. A replay
demands that every buffer the pass read is still there, and that nothing which was allocated since
lies where the pass writes: on silicon it would be overwritten by each replay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from backends.dry_run.errors import refused

HOST_TRAFFIC = frozenset(
    {
        "from_torch",
        "to_torch",
        "as_tensor",
        "to_device",
        "from_device",
        "load_tensor",
        "copy_host_to_device_tensor",
        "copy_device_to_host_tensor",
        "synchronize_device",
    }
)


@dataclass(frozen=True)
class Block:
    """Place of one buffer: the same bytes of every bank it touches."""

    memory: str
    begin: int
    end: int
    what: str

    def overlaps(self, other: Block) -> bool:
        return self.memory == other.memory and self.begin < other.end and other.begin < self.end


@dataclass
class Trace:
    """What a captured pass read and wrote, by address."""

    mesh: Any
    programs: int  # in the program cache when capture began
    reads: dict[int, Block] = field(default_factory=dict)  # by buffer id; made before the capture
    writes: dict[int, Block] = field(default_factory=dict)  # made by the pass itself
    newer: dict[tuple[str, int], Block] = field(default_factory=dict)  # made since it ended
    held: dict[tuple[str, int], Block] = field(default_factory=dict)  # blocks there when it ended

    @property
    def left(self) -> set[tuple[str, int]]:
        """Where results of the pass begin that outlive it."""
        return self.held.keys() & {(block.memory, block.begin) for block in self.writes.values()}


class TraceRules:
    """Stands in for begin, end, execute and release of traces."""

    def __init__(self, ttnn: Any) -> None:
        self._ttnn = ttnn
        self._ids = itertools.count()
        self._traces: dict[int, Trace] = {}
        self._capturing: Trace | None = None
        self._first_bytes: dict[tuple[int, str], int] = {}

    # --- the four calls

    def begin_trace_capture(self, mesh_device: Any, *, cq_id: int | None = None) -> int:
        if self._capturing is not None:
            raise refused("begin_trace_capture", "a trace is being captured already")
        self._capturing = Trace(mesh_device, mesh_device.num_program_cache_entries())
        return next(self._ids)

    def end_trace_capture(
        self, mesh_device: Any, trace_id: int, *, cq_id: int | None = None
    ) -> None:
        if self._capturing is None:
            raise refused("end_trace_capture", "no trace is being captured")
        self._capturing.held = self._taken(mesh_device)
        self._traces[trace_id], self._capturing = self._capturing, None

    def execute_trace(
        self, mesh_device: Any, trace_id: int, *, cq_id: int | None = None, blocking: bool = True
    ) -> None:
        trace = self._traces.get(trace_id)
        if trace is None:
            raise refused("execute_trace", f"there is no trace {trace_id}: it was released")
        taken = self._taken(trace.mesh)
        left = {place for other in self._traces.values() for place in other.left}
        for place in taken.keys() - left:
            if trace.held.get(place) != taken[place]:  # programs keep tables of their own
                trace.newer.setdefault(place, taken[place])
        for block in trace.reads.values():
            replaced = any(block.overlaps(newer) for newer in trace.newer.values())
            if replaced or (block.memory, block.begin) not in taken:
                raise refused(
                    "execute_trace", f"the trace reads {block.what}, which has been deallocated"
                )
        for newer in trace.newer.values():
            if (newer.memory, newer.begin) not in taken:
                continue
            if any(newer.overlaps(block) for block in trace.writes.values()):
                raise refused(
                    "execute_trace",
                    f"{newer.what} was allocated after the capture, where the trace writes: "
                    "the replay destroys it",
                )

    def release_trace(self, mesh_device: Any, trace_id: int) -> None:
        self._traces.pop(trace_id, None)

    # --- around every other call

    def before(self, op: str) -> None:
        """Host traffic cannot be part of a trace."""
        if self._capturing is not None and op in HOST_TRAFFIC:
            raise refused(op, "host traffic inside a trace capture: do it before or after")

    def after(self, op: str, inputs: Iterable[Any], outputs: Iterable[Any]) -> None:
        """Note what the call read and made."""
        trace = self._capturing
        if trace is None:
            if self._traces:
                read = self._blocks(op, inputs)  # a view or an op in place makes nothing new
                made = [b for key, b in self._blocks(op, outputs).items() if key not in read]
                for old in self._traces.values():
                    old.newer.update({(block.memory, block.begin): block for block in made})
            return
        programs = trace.mesh.num_program_cache_entries()
        if programs != trace.programs:
            raise refused(
                op,
                "a program was compiled inside a trace capture: run the same pass once before",
            )
        for key, block in self._blocks(f"{op}'s input", inputs).items():
            if key not in trace.writes:
                trace.reads[key] = block
        for key, block in self._blocks(op, outputs).items():
            if key not in trace.reads:
                trace.writes[key] = block
                # what was there before is gone; what a trace leaves is read before the next replay
                for old in self._traces.values():
                    old.newer.pop((block.memory, block.begin), None)

    @property
    def watching(self) -> bool:
        """Whether calls must be reported to `after`."""
        return self._capturing is not None or bool(self._traces)

    def _blocks(self, op: str, tensors: Iterable[Any]) -> dict[int, Block]:
        found = {}
        for tensor in tensors:
            if tensor.storage_type().name != "DEVICE" or not tensor.is_allocated():
                continue
            memory = tensor.memory_config()
            begin = tensor.buffer_address()
            if not begin:  # nothing lies there: the allocator's first byte is above
                continue
            size = _bytes_per_bank(tensor, memory)
            what = f"{tensor.dtype.name.lower()} {list(tensor.shape)} ({op})"
            kind = memory.buffer_type.name
            found[tensor.buffer_unique_id()] = Block(kind, begin, begin + size, what)
        return found

    def _taken(self, mesh: Any) -> dict[tuple[str, int], Block]:
        """The allocated blocks of a mesh by where they begin."""
        found = {}
        for memory in ("DRAM", "L1"):
            first = self._first_byte(mesh, memory)
            for address, size in self._table(mesh, memory).items():
                begin = first + address
                what = f"a block of {size} bytes a bank, which no op returned,"
                found[memory, begin] = Block(memory, begin, begin + size, what)
        return found

    def _table(self, mesh: Any, memory: str) -> dict[int, int]:
        """Address and size of each allocated block."""
        view = self._ttnn.get_memory_view(mesh, getattr(self._ttnn.BufferType, memory))
        return {
            int(b["address"]): int(b["size"]) for b in view.block_table if b["allocated"] == "yes"
        }

    def _first_byte(self, mesh: Any, memory: str) -> int:
        """Address where block tables start counting, seen by allocating a tile."""
        key = (mesh.id(), memory)
        if key not in self._first_bytes:
            ttnn = self._ttnn
            before = self._table(mesh, memory)
            config = getattr(ttnn, f"{memory}_MEMORY_CONFIG")
            tile = ttnn.empty([1, 1, 32, 32], ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh, config)
            (block,) = self._table(mesh, memory).keys() - before.keys()
            self._first_bytes[key] = tile.buffer_address() - block
        return self._first_bytes[key]


def _bytes_per_bank(tensor: Any, memory: Any) -> int:
    pages = tensor.buffer_num_pages()
    spec = memory.shard_spec
    banks = spec.grid.num_cores() if spec is not None else None
    if banks is None:
        view_banks = tensor.device().dram_grid_size().x
        grid = tensor.device().compute_with_storage_grid_size()
        banks = view_banks if memory.buffer_type.name == "DRAM" else grid.x * grid.y
    return -(-pages // banks) * tensor.buffer_aligned_page_size()
