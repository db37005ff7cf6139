"""Traces: recorded steps that replay on the same tensors.

As on silicon, nothing is computed while a trace is captured, host traffic inside is refused, and a
replay reads whatever the input buffers hold then: a stale input shows. Values between steps live in
registers, moves share one, and a register is reused after its last reader, so that a replay touches
little memory. From its third run on C does most of it. Next: replay.py says how.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from backends import allocator
from backends.emulator.api.types import DataType
from backends.emulator.chip.device import MeshDevice
from backends.emulator.chip.tensor import Tensor
from backends.emulator.kv.alike import Alike
from backends.emulator.launch import fatal, is_alias, op
from backends.emulator.loops import native
from backends.emulator.numerics.formats import finish, round_to
from backends.emulator.replay import Arenas, Recorder, Replay, key_of

_ids = itertools.count()
_MOST_ATTEMPTS = 8  # at lists of a program that something keeps from holding
_MOST_COPIED = 1 << 20  # bytes of an input that a replay copies rather than being made anew


class Capture:
    """Ops seen between begin and end of a capture; values are numbered, tensors not held."""

    def __init__(self) -> None:
        self.steps: list[tuple[Callable[..., Any], list[int], list[int]]] = []
        self.external: dict[int, Tensor] = {}  # first value -> tensor that exists outside
        self.made: list[tuple[int, weakref.ref[Tensor]]] = []  # ids of tensors made inside
        self.values: dict[int, int] = {}  # tensor id -> its value now
        self.count = itertools.count()

    def add(
        self,
        compute: Callable[..., Any],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        exact: bool,
        is_written: bool,
    ) -> None:
        """Note one op. `is_written`: the output exists already and takes the result."""
        cells = getattr(compute, "__closure__", None) or ()
        held = [cell for cell in cells if isinstance(cell.cell_contents, Tensor)]
        assert not held, f"{compute.__qualname__} keeps an operand's memory as long as the trace"
        sources = [self._value(tensor) for tensor in inputs]
        if not is_written:
            self.made += [(tensor.tensor_id, weakref.ref(tensor)) for tensor in outputs]
            if is_alias(compute, inputs[0], outputs[0]):
                self.values[outputs[0].tensor_id] = sources[0]
                return
        if not exact:
            compute = finished(compute, [tensor.dtype for tensor in outputs])
        if is_written and len(outputs) == 1:
            compute = _or_last(compute)
            sources.append(self._value(outputs[0]))
        # a written tensor has a new value, so that copies made of it before keep the old one
        targets = [next(self.count) for _ in outputs]
        self.values.update(zip((tensor.tensor_id for tensor in outputs), targets, strict=True))
        self.steps.append((compute, sources, targets))

    def _value(self, tensor: Tensor) -> int:
        value = self.values.get(tensor.tensor_id)
        if value is None:
            value = self.values[tensor.tensor_id] = next(self.count)
            self.external[value] = tensor
        return value


def _or_last(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The result, or the last operand where the op wrote into that."""

    def result_or_operand(*data: torch.Tensor) -> torch.Tensor:
        result = compute(*data[:-1])
        return data[-1] if result is None else result

    return result_or_operand


def finished(compute: Callable[..., Any], dtypes: Sequence[DataType]) -> Callable[..., Any]:
    """`compute` with its results rounded to their formats."""
    if len(dtypes) > 1:
        return lambda *data: tuple(map(finish, compute(*data), dtypes))
    dtype = dtypes[0]
    if dtype.is_block:

        def block(*data: torch.Tensor) -> Any:
            result = compute(*data)
            return None if result is None else round_to(result, dtype)

        return block
    carrier = dtype.carrier

    def plain(*data: torch.Tensor) -> Any:
        result = compute(*data)
        return result if result is None or result.dtype is carrier else result.to(carrier)

    return plain


class Program:
    """A capture made ready for replay."""

    def __init__(self, capture: Capture, arenas: Arenas | None) -> None:
        """`arenas` of the device, see replay.py; None: values lie where C cannot reach them."""
        made = [(capture.values[key], ref) for key, ref in capture.made if ref() is not None]
        stores = [
            (capture.values[tensor.tensor_id], tensor)
            for value, tensor in capture.external.items()
            if capture.values[tensor.tensor_id] != value
        ]
        keep = set(capture.external) | {value for value, _ in [*made, *stores]}
        places = _assign_registers(capture.steps, keep)
        self.loads = [(places[value], tensor) for value, tensor in capture.external.items()]
        self.steps = [
            (compute, tuple(places[i] for i in sources), tuple(places[i] for i in targets))
            for compute, sources, targets in capture.steps
        ]
        self.stores = [(places[value], tensor) for value, tensor in stores]
        self.made = [(places[value], ref) for value, ref in made]
        self.size = 1 + max(places.values(), default=-1)

        self._known: list[torch.Tensor | None] = []  # values of loads when `_replay` was made
        self._groups: dict[int, Alike] = {}  # of loads that are caches, which chips' were the same
        self._copied: set[int] = set()  # places of loads that change from run to run
        self._unread: set[int] = set()  # buffers that take a result, whatever they held
        self._inputs: list[Any] = []  # where a replay reads what loads give
        self._replay: Replay | None = None
        self._arenas: Arenas = {} if arenas is None else arenas
        self._attempts = 0 if arenas is None else _MOST_ATTEMPTS

    def run(self) -> None:
        """Every step once, in C where a list of them holds."""
        data = [tensor.data for _, tensor in self.loads]
        if self._replay is not None and self._holds(data):
            self._write_copies(data)
            done = self._replay.run()
            if done == len(self.steps):
                self._finish(self._replay.registers, in_place=True)
                return
            registers = self._replay.registers_before(done, self._registers(self._inputs))
            self._replay = None
            self._run_steps(registers, done)
            return
        # not in the first run, whose ops have things to prepare
        if self._known and self._attempts and native.library() is not None:
            self._attempts -= 1
            self._record(data)
            allocator.give_back()
            return
        self._known = list(data)
        self._run_steps(self._registers(data), 0)

    def _registers(self, inputs: Sequence[Any]) -> list[Any]:
        """Registers before the first step, with what loads give."""
        registers = [None] * self.size
        for (place, _), value in zip(self.loads, inputs, strict=True):
            registers[place] = value
        return registers

    def _run_steps(self, registers: list[Any], first: int) -> None:
        for compute, sources, targets in self.steps[first:]:
            result = compute(*[registers[i] for i in sources])
            if len(targets) == 1:
                registers[targets[0]] = result
            else:
                for place, value in zip(targets, result, strict=True):
                    registers[place] = value
        self._finish(registers, in_place=False)

    def _finish(self, registers: list[Any], *, in_place: bool) -> None:
        """Results into the tensors that outlive the run; those of a replay are copied."""
        for place, tensor in self.stores:
            value = registers[place]
            is_own = in_place and value is not tensor.data
            tensor.data = value.clone() if is_own else value
        for place, ref in self.made:
            made = ref()
            if made is not None:
                made.data = registers[place].clone() if in_place else registers[place]

    # --- the list that C walks

    def _record(self, data: list[torch.Tensor | None]) -> None:
        """Run once more, noting what the steps do."""
        found = enumerate(getattr(value, "alike", None) for value in data)
        self._groups = {at: known for at, known in found if known is not None}
        self._known, self._inputs = list(data), list(data)
        for at, value in enumerate(data):
            if value is not None and (at in self._copied or not value.is_floating_point()):
                self._copied.add(at)
                self._inputs[at] = value.clone(memory_format=torch.contiguous_format)
        recorder = Recorder(self._registers(self._inputs))
        recorder.run(self.steps)
        outliving = [recorder.registers[place] for place, _ in (*self.stores, *self.made)]
        kept = list(map(recorder.noted, outliving))
        written, read = {tensor.tensor_id for _, tensor in self.stores}, recorder.read(kept)
        self._unread = {
            at
            for at, ((_, tensor), value) in enumerate(zip(self.loads, self._inputs, strict=True))
            if tensor.tensor_id in written and value is not None and key_of(value) not in read
        }
        changing = [self._inputs[at] for at in self._copied]
        self._replay = Replay(
            self.steps, recorder, kept=kept, changing=changing, arenas=self._arenas
        )
        self._finish(recorder.registers, in_place=True)

    def _holds(self, data: list[torch.Tensor | None]) -> bool:
        """Whether all that the list reads is where it was, or small enough to be put there."""
        moved = [
            (at, value)
            for at, (value, known) in enumerate(zip(data, self._known, strict=True))
            if value is not known and at not in self._copied and at not in self._unread
        ]
        # attention of a list reads one cache for all chips whose caches were the same
        same = all(getattr(data[at], "alike", None) is known for at, known in self._groups.items())
        if not moved and same:
            return True
        for at, value in moved:  # all at once: buffers that a step writes have moved together
            if value is not None and value.nbytes <= _MOST_COPIED:
                self._copied.add(at)
        self._replay = None
        return False

    def _write_copies(self, data: list[torch.Tensor | None]) -> None:
        for at in self._copied - self._unread:
            value, own = data[at], self._inputs[at]
            if value is not self._known[at]:
                assert value is not None and value.shape == own.shape
                own.copy_(value)
                self._known[at] = value


def _assign_registers(
    steps: Sequence[tuple[Any, list[int], list[int]]], keep: set[int]
) -> dict[int, int]:
    """A register per value; those not in `keep` give theirs up after their last use."""
    last = {}
    for index, (_, sources, targets) in enumerate(steps):
        for value in (*sources, *targets):
            last[value] = index
    places = {value: place for place, value in enumerate(sorted(keep))}
    fresh = itertools.count(len(places))
    free: list[int] = []
    for index, (_, sources, targets) in enumerate(steps):
        for value in targets:
            if value not in places:
                places[value] = free.pop() if free else next(fresh)
        for value in {*sources, *targets}:
            if last[value] == index and value not in keep:
                free.append(places[value])
    return places


@op("begin_trace_capture")
def begin_trace_capture(mesh_device: MeshDevice, *, cq_id: int | None = None) -> int:
    if mesh_device.capturing is not None:
        fatal("a trace is being captured already")
    mesh_device.capturing = Capture()
    return next(_ids)


@op("end_trace_capture")
def end_trace_capture(mesh_device: MeshDevice, trace_id: int, *, cq_id: int | None = None) -> None:
    if mesh_device.capturing is None:
        fatal("no trace is being captured")
    mesh_device.traces[trace_id] = Program(
        mesh_device.capturing, mesh_device.arenas if mesh_device.torch_device == "cpu" else None
    )
    mesh_device.capturing = None


@op("execute_trace")
def execute_trace(
    mesh_device: MeshDevice, trace_id: int, *, cq_id: int | None = None, blocking: bool = True
) -> None:
    if trace_id not in mesh_device.traces:
        fatal(f"no trace {trace_id} on this device: it was released or never captured")
    mesh_device.traces[trace_id].run()


@op("release_trace")
def release_trace(mesh_device: MeshDevice, trace_id: int) -> None:
    mesh_device.traces.pop(trace_id, None)


def refuse_during_capture(device: Any, what: str) -> None:
    """Host traffic cannot be part of a trace."""
    if device is not None and device.capturing is not None:
        fatal(f"{what} are not supported during trace capture.")
