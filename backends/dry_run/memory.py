"""High-water marks of the mocked DRAM and L1: TT-NN's own allocator, looked at after every call."""

from __future__ import annotations

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


class MemoryWatch:
    """Follows what is allocated on each open mesh."""

    def __init__(self, ttnn: Any) -> None:
        self._view = ttnn.get_memory_view
        self._kinds = {"DRAM": ttnn.BufferType.DRAM, "L1": ttnn.BufferType.L1}
        self._marks: dict[int, dict[str, HighWater]] = {}

    def look(self, mesh: Any) -> dict[str, HighWater]:
        """Update and return the marks of a mesh; a microsecond per memory."""
        marks = self._marks.get(mesh.id())
        if marks is None:
            marks = self._marks[mesh.id()] = {}
        for name, kind in self._kinds.items():
            view = self._view(mesh, kind)
            mark = marks.get(name)
            if mark is None:
                mark = marks[name] = HighWater(view.num_banks, view.total_bytes_per_bank)
            mark.now_per_bank = view.total_bytes_allocated_per_bank
            mark.peak_per_bank = max(mark.peak_per_bank, mark.now_per_bank)
        return marks

    def reset(self, mesh: Any) -> None:
        """Start a new high-water mark (of a phase, say)."""
        for mark in self.look(mesh).values():
            mark.peak_per_bank = mark.now_per_bank
