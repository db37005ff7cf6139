"""Parts of a chip that run by themselves: sub-devices, counters other chips raise, buffers between.

Nothing here computes. A manager's cores are checked as TT-NN checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.emulator.api.types import BufferType, CoreCoord, CoreRange, CoreRangeSet


class SubDeviceId(int):
    """Number of a sub-device in the loaded manager; without one, 0 is the whole chip."""


@dataclass(frozen=True)
class SubDevice:
    """Cores that run programs of their own."""

    cores: Sequence[CoreRangeSet]


@dataclass(frozen=True, eq=False)
class GlobalSemaphore:
    """A counter at one address of all the cores, on all chips."""

    cores: CoreRangeSet


@dataclass(frozen=True, eq=False)
class GlobalCircularBuffer:
    """L1 that sender cores fill and receiver cores read, across programs."""

    mapping: Sequence[tuple[CoreCoord, CoreRangeSet]]
    size: int

    def receivers(self) -> int:
        """Cores that each of the first sender's blocks goes to."""
        return self.mapping[0][1].num_cores()


def create_global_semaphore(
    mesh_device: Any, cores: CoreRangeSet, initial_value: int, buffer_type: Any = BufferType.L1
) -> GlobalSemaphore:
    return GlobalSemaphore(cores)


def create_global_circular_buffer(
    mesh_device: Any,
    sender_receiver_core_mapping: Sequence[tuple[CoreCoord, CoreRangeSet]],
    size: int,
    buffer_type: Any = BufferType.L1,
) -> GlobalCircularBuffer:
    """Refuses a core that has two parts to play."""
    taken: set[tuple[int, int]] = set()
    for sender, receivers in sender_receiver_core_mapping:
        for core in (sender, *cores_of(receivers)):
            if (core.x, core.y) in taken:
                raise RuntimeError(f"TT_FATAL: core {core} sends or receives twice")
            taken.add((core.x, core.y))
    return GlobalCircularBuffer(tuple(sender_receiver_core_mapping), size)


def check_apart(parts: Sequence[CoreRangeSet], grid: tuple[int, int]) -> None:
    """Refuse parts that share cores, or have some that the chip has not."""
    seen: set[tuple[int, int]] = set()
    for part in parts:
        own = {(core.x, core.y) for core in cores_of(part)}
        if seen & own:
            raise RuntimeError("TT_FATAL: SubDevices specified have intersecting cores")
        if any(x >= grid[0] or y >= grid[1] for x, y in own):
            raise RuntimeError(f"TT_FATAL: SubDevices specified leave the {grid[0]}x{grid[1]} grid")
        seen |= own


def cores_of(cores: CoreRangeSet) -> list[CoreCoord]:
    """Every core of a set, each rectangle row by row."""
    return [
        CoreCoord(x, y)
        for part in cores.ranges()
        for y in range(part.start.y, part.end.y + 1)
        for x in range(part.start.x, part.end.x + 1)
    ]


def next_cores(box: CoreRange, first: int, count: int) -> CoreRangeSet:
    """`count` cores of a rectangle from its `first` one on, in whole rows where it can."""
    ranges, last = [], first + count
    while first < last:
        y, x = divmod(first, box.columns)
        rows = (last - first) // box.columns if x == 0 else 0
        wide = box.columns if rows else min(box.columns - x, last - first)
        start = CoreCoord(box.start.x + x, box.start.y + y)
        end = CoreCoord(start.x + wide - 1, start.y + max(rows, 1) - 1)
        ranges.append(CoreRange(start, end))
        first += wide * max(rows, 1)
    return CoreRangeSet(ranges)
