"""A captured step as a list that C walks: addresses of loops and of what they read, no Python.

The list is made while the step runs once more: what an op does in the C loops is noted, and an op
that does anything else stays a call of Python between two walks. Results get places in one block of
memory, used again after their last reader. Whatever a list takes for granted (the tensors outside
it, that no loop refuses) is looked at in every run; where it does not hold, the step runs op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backends.emulator.loops import native
from backends.emulator.loops.call import (
    COUNTER_WORDS,
    Call,
    Later,
    listening,
    loops,
    made,
    team_size,
    walk,
)
from backends.emulator.numerics.tiles import Packed

Step = tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]  # compute, sources, targets
MOST_RECORDED = 1 << 29  # bytes of results; a recording holds all, a list what is in use at once
_BY_REQUEST = "best_of"  # refuses users who want more than the best token: next time it may not
_ALIGNMENT = 64  # bytes of a line that memory hands over
_FRESH = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided",
          "aten::new_empty_strided")  # fmt: skip


class _Watch(TorchDispatchMode):
    """Sees whether torch computes anything, and every tensor that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.has_computed = False
        self.made: list[torch.Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its compiler, 140 MB of it, to keep it away from here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        self.has_computed |= func._schema.name not in _FRESH
        results = result if isinstance(result, list | tuple) else (result,)
        self.made += [each for each in results if isinstance(each, torch.Tensor)]
        return result


class _Entry(NamedTuple):
    """One call of a loop, or one op of Python."""

    call: Call | None
    step: int  # of the program
    reads: list[torch.Tensor]
    writes: list[torch.Tensor]
    operands: list[torch.Tensor] | None = None  # of an op that Python can do, too


class Recorder:
    """Runs a program's steps once and notes what they do."""

    def __init__(self, size: int) -> None:
        self.registers: list[Any] = [None] * size
        self.entries: list[_Entry] = []
        self.results: list[tuple[torch.Tensor, ...]] = []  # of each step
        self.made: dict[int, torch.Tensor] = {}  # storage -> a tensor that keeps it
        self._private: set[int] = set()  # storages that only ops of Python know to fill

    def run(self, steps: Sequence[Step]) -> int:
        """How many steps ran: not all where Python is a small part of what they take."""
        recorded = 0
        for number, (compute, sources, targets) in enumerate(steps):
            if recorded > MOST_RECORDED:
                return number
            reads = [self.registers[i] for i in sources]
            calls: list[Call] = []
            with _Watch() as watch, listening(calls.append):
                result = compute(*reads)
            writes = (result,) if len(targets) == 1 else tuple(result)
            new = {key_of(tensor): tensor for tensor in watch.made}
            recorded += sum(_size(tensor) for key, tensor in new.items() if key not in self.made)
            self.made |= new
            in_c = not watch.has_computed and all(
                call.done and not any(key_of(t) in self._private for t in call.tensors)
                for call in calls
            )
            if not in_c:
                writes = tuple(map(made, writes))
            for place, value in zip(targets, writes, strict=True):
                self.registers[place] = value
            self.results.append(writes)
            if in_c:
                self.entries += [_Entry(call, number, list(call.tensors), []) for call in calls]
                if [call.name for call in calls] == [_BY_REQUEST]:
                    entry = self.entries[-1]
                    self.entries[-1] = entry._replace(
                        reads=[*entry.reads, *reads], writes=list(writes), operands=reads
                    )
                continue
            self._private |= {key_of(tensor) for tensor in watch.made}
            self._private -= {key_of(tensor) for tensor in writes}
            self.entries.append(_Entry(None, number, reads, list(writes), reads))
        return len(steps)

    def read(self, kept: Iterable[torch.Tensor]) -> set[int]:
        """The memory that anything was read from, or that outlives the run."""
        reads = (tensor for entry in self.entries for tensor in entry.reads)
        return {key_of(tensor) for tensor in (*reads, *kept)}


def key_of(tensor: torch.Tensor) -> int:
    """Names the memory that a tensor is read from; no list could write that of packed weights."""
    if isinstance(tensor, Packed):
        return -1
    if isinstance(tensor, Later):
        return key_of(tensor.source)
    return tensor.untyped_storage().data_ptr()


class Replay:
    """The list of one program, ready to be walked."""

    def __init__(
        self, steps: Sequence[Step], recorder: Recorder, *, kept: Iterable[torch.Tensor],
        changing: Iterable[torch.Tensor],
    ) -> None:  # fmt: skip
        """`kept` outlives a run; `changing` is written in place between runs."""
        self._steps, self._entries = steps, recorder.entries
        self._threads, self._library = team_size(), native.library()
        self._places = _arrange(recorder, {key_of(tensor) for tensor in kept})
        sizes = [recorder.made[key].untyped_storage().nbytes() for key in self._places]
        ends = [at + size for at, size in zip(self._places.values(), sizes, strict=True)]
        self._arena = torch.empty(max(ends, default=0) + _ALIGNMENT, dtype=torch.uint8)
        self._base = -self._arena.data_ptr() % _ALIGNMENT
        self._changing = {key_of(self._arena), *map(key_of, changing)}
        self._held = [
            tensor for entry in self._entries for tensor in entry.reads
            if key_of(tensor) not in self._places
        ]  # fmt: skip
        self._results = [tuple(map(self.moved, results)) for results in recorder.results]
        self._reads = {
            at: [self.moved(tensor) for tensor in entry.operands]
            for at, entry in enumerate(self._entries)
            if entry.operands is not None
        }
        self._lay_out()
        self._entries = [_Entry(None, entry.step, [], []) for entry in self._entries]

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the recording where it lies in this list's memory."""
        if isinstance(tensor, Later):
            return tensor.on(self.moved(tensor.source))
        place = self._places.get(key_of(tensor))
        if place is None:
            return tensor
        first = (self._base + place) // tensor.element_size() + tensor.storage_offset()
        out = torch.empty(0, dtype=tensor.dtype)
        return out.set_(self._arena.untyped_storage(), first, tensor.shape, tensor.stride())

    def _lay_out(self) -> None:
        words: list[int] = []
        starts: list[int] = []
        for entry in self._entries:
            starts.append(len(words))
            if entry.call is None:
                words.append(0)
                continue
            fields, layout = loops()[entry.call.name]
            own = list(memoryview(entry.call.words).cast("q"))
            assert len(own) == layout.size // 8
            for at, field in enumerate(fields, 1):
                tensor = entry.call.given[field.name]
                if field.is_pointer and tensor is not None:
                    own[at] = self.moved(tensor).data_ptr()
            words += own
        self._words, self._starts = torch.tensor(words), torch.tensor(starts)
        self._counters = torch.empty(len(starts) * COUNTER_WORDS, dtype=torch.int64)

    def run(self) -> int:
        """Walk the list; the number of the first step that it could not do, or their number."""
        if native.library() is not self._library:
            return 0
        aliases: dict[int, torch.Tensor] = {}
        at, count = 0, len(self._entries)
        while at < count:
            at = walk(self._words, self._starts, self._counters, at, count, self._threads)
            if at == count:
                break
            if at not in self._reads:
                return self._entries[at].step  # a loop refused
            self._compute(at, aliases)
            at += 1
        return len(self._steps)

    def _compute(self, at: int, aliases: dict[int, torch.Tensor]) -> None:
        """One op of Python. Values change in place here: it gets tensors that nobody remembers."""
        step = self._entries[at].step
        reads = [self._fresh(tensor, aliases) for tensor in self._reads[at]]
        result = self._steps[step][0](*reads)
        results = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        for target, value in zip(self._results[step], map(made, results), strict=True):
            if target.data_ptr() != value.data_ptr():
                assert target.shape == value.shape and target.dtype is value.dtype
                target.copy_(value)

    def registers_before(self, step: int, registers: list[Any]) -> list[Any]:
        """`registers` as a run op by op goes on from a step, nothing in them remembered by anyone.

        Else page numbers that a loop has just refused would count as those checked before.
        """
        registers = list(registers)
        for (_, _, targets), results in zip(self._steps[:step], self._results, strict=False):
            for place, tensor in zip(targets, results, strict=True):
                registers[place] = tensor
        aliases: dict[int, torch.Tensor] = {}
        return [None if each is None else self._fresh(each, aliases) for each in registers]

    def _fresh(self, tensor: torch.Tensor, aliases: dict[int, torch.Tensor]) -> torch.Tensor:
        """The tensor, or an alias of it where its values change in place."""
        if key_of(tensor) not in self._changing:
            return tensor
        return aliases.setdefault(id(tensor), tensor.detach())


def _arrange(recorder: Recorder, kept: set[int]) -> dict[int, int]:
    """Where each storage of a recording lies, so that those in use at once do not meet."""
    last: dict[int, int] = {}
    first: dict[int, int] = {}
    for at, entry in enumerate(recorder.entries):
        for tensor in (*entry.reads, *entry.writes):
            key = key_of(tensor)
            if key in recorder.made:
                first.setdefault(key, at)
                last[key] = at
    for key in kept & set(first):
        last[key] = len(recorder.entries)
    places: dict[int, int] = {}
    free: list[tuple[int, int]] = [(0, 1 << 62)]  # first byte and size
    ending: dict[int, list[int]] = {}
    starting: dict[int, list[int]] = {}
    for key, at in last.items():
        ending.setdefault(at, []).append(key)
        starting.setdefault(first[key], []).append(key)
    for at in range(len(recorder.entries)):
        for key in starting.get(at, ()):
            places[key] = _take(free, _size(recorder.made[key]))
        for key in ending.get(at, ()):
            _give(free, places[key], _size(recorder.made[key]))
    return places


def _size(tensor: torch.Tensor) -> int:
    return -(-max(1, tensor.untyped_storage().nbytes()) // _ALIGNMENT) * _ALIGNMENT


def _take(free: list[tuple[int, int]], size: int) -> int:
    for at, (first, room) in enumerate(free):
        if room >= size:
            free[at] = (first + size, room - size)
            return first
    raise AssertionError("the last stretch has no end")


def _give(free: list[tuple[int, int]], first: int, size: int) -> None:
    merged: list[tuple[int, int]] = []
    for begin, room in sorted([*free, (first, size)]):
        if merged and sum(merged[-1]) == begin:
            merged[-1] = (merged[-1][0], merged[-1][1] + room)
        elif room:
            merged.append((begin, room))
    free[:] = merged
