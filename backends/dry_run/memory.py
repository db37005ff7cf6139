"""High-water marks of the mocked DRAM and L1: TT-NN's own allocator, looked at after every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class HighWater:
    """Bytes of one chip's memory, summed over its banks (for L1: one bank is one core)."""

    banks: int
    bank_bytes: int
    now_per_bank: int = 0
    peak_per_bank: int = 0

    @property
    def peak_bytes(self) -> int:
        return self.peak_per_bank * self.banks

    @property
    def now_bytes(self) -> int:
        return self.now_per_bank * self.banks

    def reach(self, per_bank: int) -> None:
        """Raise the mark."""
        self.peak_per_bank = max(self.peak_per_bank, per_bank)


class MemoryWatch:
    """Follows what is allocated on each open mesh."""

    def __init__(self, ttnn: Any) -> None:
        self._view = ttnn.get_memory_view
        self._kinds = {"DRAM": ttnn.BufferType.DRAM, "L1": ttnn.BufferType.L1}
        self._marks: dict[int, dict[str, HighWater]] = {}

    def look(self, mesh: Any, only: str | None = None) -> dict[str, HighWater]:
        """Update the marks of a mesh (or of one memory) and return all known so far.

        The wheel lists every block to answer, so a full DRAM takes it 0.1 ms.
        """
        marks = self._marks.get(mesh.id())
        if marks is None:
            marks = self._marks[mesh.id()] = {}
        for name, kind in self._kinds.items():
            if only not in (None, name):
                continue
            view = self._view(mesh, kind)
            mark = marks.get(name)
            if mark is None:
                mark = marks[name] = HighWater(view.num_banks, view.total_bytes_per_bank)
            mark.now_per_bank = view.total_bytes_allocated_per_bank
            mark.reach(mark.now_per_bank)
        return marks

    def clear(self) -> None:
        """Forget all marks: the next mesh to be opened may have the number of an old one."""
        self._marks.clear()


@dataclass
class CoreUsage:
    """Peak bytes of one worker core's L1: tensors alone, and with the programs' own buffers.

    `dram_growth` is the peak of one DRAM bank beside what it held before, with the buffers that
    ops (collectives above all) allocate and free before they return.
    """

    tensors: int = 0
    total: int = 0
    dram_growth: int = 0


@contextmanager
def core_usage(ttnn: Any) -> Iterator[CoreUsage]:
    """Measure the calls inside; they allocate nothing, so run them before for validation."""
    usage = CoreUsage()
    graph = ttnn.graph
    graph.begin_graph_capture(graph.RunMode.NO_DISPATCH)
    try:
        yield usage
    finally:  # an open capture would crash the interpreter when it exits
        captured = graph.end_graph_capture()
    found = graph.extract_resource_usage_per_core(captured)
    usage.tensors, usage.total = found.peak_l1, found.peak_total
    usage.dram_growth = _dram_growth(captured)


def _dram_growth(captured: list[dict[str, Any]]) -> int:
    """Highest sum of what the captured calls allocated and did not free yet, bytes per bank."""
    signs = {"buffer_allocate": 1, "buffer_deallocate": -1}
    now = peak = 0
    for node in captured:
        sign, facts = signs.get(node["node_type"], 0), node["params"]
        if sign and facts["type"] == "DRAM":
            now += sign * int(facts["max_size_per_bank"])
            peak = max(peak, now)
    return peak
