"""A captured step as a list that C walks: addresses of loops and of what they read, no Python.

The list is made while the step runs once more: what an op does in the C loops is noted, and an op
that does anything else stays a call of Python between two walks. Of what is made only size and form
are noted, so noting takes no more memory than running. Results get places in one block of memory,
used again after their last reader, and by other lists. Whatever a list takes for granted (the
tensors outside it, that no loop refuses) is looked at in every run; where it does not hold, the
step runs op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

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
Arenas = MutableMapping[int, torch.Tensor]  # size in bytes -> memory that lists run in, in turns
_BY_REQUEST = "best_of"  # refuses users who want more than the best token: next time it may not
_ALIGNMENT = 64  # bytes of a line that memory hands over
_FRESH = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided",
          "aten::new_empty_strided")  # fmt: skip


class Made:
    """Memory that a run makes; of the run itself nobody keeps it."""

    size = 0  # bytes


class Note(NamedTuple):
    """A tensor in memory that a run makes. It takes no memory but Python's.

    C's would lie scattered in what the run lets go of, so that larger results found no room there.
    """

    memory: Made
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    later: Callable[[torch.Tensor], Later] | None  # what is made of the tensor


class _Watch(TorchDispatchMode):
    """Sees whether torch computes anything, and all memory that it takes."""

    def __init__(self, known: WeakKeyDictionary[torch.UntypedStorage, Made]) -> None:
        super().__init__()
        self.has_computed = False
        self.made: list[Made] = []
        self._known = known

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its compiler, 140 MB of it, to keep it away from here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        self.has_computed |= func._schema.name not in _FRESH
        if not func._schema.is_mutable:  # else the result is what was written into
            for each in result if isinstance(result, list | tuple) else (result,):
                if isinstance(each, torch.Tensor):
                    self.made.append(self._known.setdefault(each.untyped_storage(), Made()))
        return result


class _Entry(NamedTuple):
    """One call of a loop, or one op of Python."""

    call: Call | None
    step: int  # of the program
    reads: Sequence[Note | torch.Tensor]
    writes: Sequence[Note | torch.Tensor]
    operands: Sequence[Note | torch.Tensor] | None = None  # of an op that Python can do, too


class Recorder:
    """Runs a program's steps once and notes what they do."""

    def __init__(self, registers: list[Any]) -> None:
        self.registers = registers
        self.entries: list[_Entry] = []
        self.results: list[tuple[Note | torch.Tensor, ...]] = []  # of each step
        self._made = WeakKeyDictionary[torch.UntypedStorage, Made]()
        self._private: set[Hashable] = set()  # memory that only ops of Python know to fill

    def run(self, steps: Sequence[Step]) -> None:
        for number, step in enumerate(steps):
            self._run_step(number, *step)

    def _run_step(
        self, number: int, compute: Callable[..., Any], sources: Sequence[int],
        targets: Sequence[int],
    ) -> None:  # fmt: skip
        reads = [self.registers[i] for i in sources]
        operands = tuple(map(self.noted, reads))
        calls: list[Call] = []
        with _Watch(self._made) as watch, listening(lambda call: calls.append(self._call(call))):
            result = compute(*reads)
            writes = (result,) if len(targets) == 1 else tuple(result)
            given = {key_of(each) for call in calls for each in call.given.values()}
            given |= {key_of(self.noted(each)) for each in writes}
            in_c = not (watch.has_computed or self._private & given) and all(
                call.done for call in calls
            )
            if not in_c:
                writes = tuple(map(made, writes))
        for place, value in zip(targets, writes, strict=True):
            self.registers[place] = value
        results = tuple(map(self.noted, writes))
        self.results.append(results)
        if not in_c:
            self._private = self._private.union(watch.made) - set(map(key_of, results))
            self.entries.append(_Entry(None, number, operands, results, operands))
            return
        self.entries += [_Entry(call, number, tuple(call.given.values()), ()) for call in calls]
        if [call.name for call in calls] == [_BY_REQUEST]:
            entry = self.entries[-1]
            self.entries[-1] = entry._replace(
                reads=(*entry.reads, *operands), writes=results, operands=operands
            )

    def _call(self, call: Call) -> Call:
        """A call with but its tensors, as noted."""
        given = call.given.items()
        tensors = {key: self.noted(each) for key, each in given if isinstance(each, torch.Tensor)}
        return call._replace(given=tensors)

    def noted(self, tensor: torch.Tensor) -> Note | torch.Tensor:
        """A note of a tensor that was made in this run; others as they are."""
        if isinstance(tensor, Later):
            source = self.noted(tensor.source)
            if isinstance(source, torch.Tensor):
                return tensor
            return source._replace(later=partial(tensor.recipe, shape=tuple(tensor.shape)))
        storage = tensor.untyped_storage()
        memory = self._made.get(storage)
        if memory is None:
            return tensor
        memory.size = storage.nbytes()
        place = (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
        return Note(memory, tensor.dtype, *place, None)

    def read(self, kept: Iterable[Note | torch.Tensor]) -> set[Hashable]:
        """The memory that anything was read from, or that outlives the run."""
        reads = (tensor for entry in self.entries for tensor in entry.reads)
        return {key_of(tensor) for tensor in (*reads, *kept)}


def key_of(tensor: Note | torch.Tensor) -> Hashable:
    """Names the memory that a tensor is read from; no list could write that of packed weights."""
    if isinstance(tensor, Note):
        return tensor.memory
    if isinstance(tensor, Packed):
        return -1
    if isinstance(tensor, Later):
        return key_of(tensor.source)
    return tensor.untyped_storage().data_ptr()


class Replay:
    """The list of one program, ready to be walked."""

    def __init__(
        self, steps: Sequence[Step], recorder: Recorder, *, kept: Iterable[Note | torch.Tensor],
        changing: Iterable[torch.Tensor], arenas: Arenas,
    ) -> None:  # fmt: skip
        """`kept` outlives a run; `changing` is written in place between runs.

        `arenas` are those of lists that never run at the same time.
        """
        self._steps, self._entries = steps, recorder.entries
        self._threads, self._library = team_size(), native.library()
        self._places, size = _arrange(recorder, {key_of(tensor) for tensor in kept})
        self._arena = _shared(arenas, size + _ALIGNMENT)
        self._base = -self._arena.data_ptr() % _ALIGNMENT
        self._changing = {key_of(self._arena), *map(key_of, changing)}
        self._held = [
            tensor for entry in self._entries for tensor in entry.reads
            if not isinstance(tensor, Note)
        ]  # fmt: skip
        self._results = [tuple(map(self.moved, results)) for results in recorder.results]
        self._reads = {
            at: [self.moved(tensor) for tensor in entry.operands]
            for at, entry in enumerate(self._entries)
            if entry.operands is not None
        }
        self.registers = [
            None if value is None else self.moved(recorder.noted(value))
            for value in recorder.registers
        ]
        self._lay_out()
        self._entries = [_Entry(None, entry.step, [], []) for entry in self._entries]

    def moved(self, tensor: Note | torch.Tensor) -> torch.Tensor:
        """A tensor of the recording where it lies in this list's memory."""
        if isinstance(tensor, Later):
            return tensor.on(tensor.source)
        if not isinstance(tensor, Note):
            return tensor
        out = torch.empty(0, dtype=tensor.dtype)
        first = (self._base + self._places[tensor.memory]) // out.element_size() + tensor.offset
        out.set_(self._arena.untyped_storage(), first, tensor.shape, tensor.stride)
        if tensor.later is None:
            return out
        later = tensor.later(out)
        return later.on(later.source)

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
                tensor = entry.call.given.get(field.name)
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

    def registers_before(self, step: int, inputs: list[Any]) -> list[Any]:
        """Registers, at first `inputs`, as a run op by op goes on from a step.

        Nothing in them is remembered by anyone, else page numbers that a loop has just refused
        would count as those checked before. Nor does it lie where other lists run.
        """
        registers = list(inputs)
        for (_, _, targets), results in zip(self._steps[:step], self._results, strict=False):
            for place, tensor in zip(targets, results, strict=True):
                registers[place] = tensor
        aliases: dict[int, torch.Tensor] = {}
        return [None if each is None else self._own(each, aliases) for each in registers]

    def _own(self, tensor: torch.Tensor, aliases: dict[int, torch.Tensor]) -> torch.Tensor:
        """The tensor out of the arena; an alias of it where else its values change in place."""
        if key_of(tensor) != key_of(self._arena):
            return self._fresh(tensor, aliases)
        return tensor.clone()

    def _fresh(self, tensor: torch.Tensor, aliases: dict[int, torch.Tensor]) -> torch.Tensor:
        """The tensor, or an alias of it where its values change in place."""
        if key_of(tensor) not in self._changing:
            return tensor
        return aliases.setdefault(id(tensor), tensor.detach())


def _shared(arenas: Arenas, size: int) -> torch.Tensor:
    """Memory of at least so many bytes, of few sizes so that lists of many lengths share it."""
    size = 1 << (size - 1).bit_length()
    found = arenas.get(size)
    if found is None:
        found = arenas[size] = torch.empty(size, dtype=torch.uint8)
    return found


def _arrange(recorder: Recorder, kept: set[Hashable]) -> tuple[dict[Made, int], int]:
    """Where what a recording makes lies, so that what is in use at once does not meet.

    Also, how many bytes that takes in all.
    """
    last: dict[Made, int] = {}
    first: dict[Made, int] = {}
    for at, entry in enumerate(recorder.entries):
        for tensor in (*entry.reads, *entry.writes):
            if isinstance(tensor, Note):
                first.setdefault(tensor.memory, at)
                last[tensor.memory] = at
    for memory in first:
        if memory in kept:
            last[memory] = len(recorder.entries)
    places: dict[Made, int] = {}
    free: list[tuple[int, int]] = [(0, 1 << 62)]  # first byte and size
    ending: dict[int, list[Made]] = {}
    starting: dict[int, list[Made]] = {}
    for key, at in last.items():
        ending.setdefault(at, []).append(key)
        starting.setdefault(first[key], []).append(key)
    for at in range(len(recorder.entries)):
        for key in starting.get(at, ()):
            places[key] = _take(free, _size(key))
        for key in ending.get(at, ()):
            _give(free, places[key], _size(key))
    return places, max((at + _size(key) for key, at in places.items()), default=0)


def _size(memory: Made) -> int:
    return -(-max(1, memory.size) // _ALIGNMENT) * _ALIGNMENT


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
