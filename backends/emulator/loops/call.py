"""Calls the C loops: arguments laid out as steps.h says, refused where it does not allow them.

A loop is called by its name and the names of its fields. Whoever wants to do the same again without
Python listens to the calls (`listening`). Next: trace.py, which replays them.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from backends.emulator.loops import native

_HEADER = Path(__file__).with_name("steps.h").read_text()
_STRUCT = re.compile(r"^struct (\w+) \{(.*?)^\};", re.S | re.M)
_FIELD = re.compile(r"^ +(?:const )?(\w+) (\*?)([\w, ]+);(?:\s*/\*(.*?)\*/)?", re.M | re.S)
_TYPES = {
    "uint16_t": torch.bfloat16,
    "float": torch.float32,
    "int32_t": torch.int32,
    "uint32_t": torch.int32,
    "int64_t": torch.int64,
}
CONSTANTS = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", _HEADER)}
LANES = CONSTANTS["BLOCK"]  # the loops take widths that are a multiple of this
WORTH_THREADS = 1 << 14  # values whose loop takes longer than waking a thread
COUNTER_WORDS = 8  # of a step, see team.h
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


class Field(NamedTuple):
    """One argument of a loop."""

    name: str
    is_pointer: bool
    dtype: torch.dtype | None  # of a tensor; None: any
    dims: tuple[str, ...]  # whose product is its size
    is_open: bool  # the size is a multiple of that
    is_strided: bool  # its layout is the caller's care
    may_be_none: bool


class Loop(NamedTuple):
    """One function of the library and what it takes."""

    fields: tuple[Field, ...]
    layout: struct.Struct  # of its words: the function's address, then the fields


@functools.cache
def loops() -> dict[str, Loop]:
    """All loops by name, as the header declares them."""
    found = {}
    for name, body in _STRUCT.findall(_HEADER):
        fields: list[Field] = []
        for kind, star, names, comment in _FIELD.findall(body):
            dims = re.search(r"\[(.*?)\]", comment)
            parts = [part.strip() for part in dims[1].split(",")] if dims else []
            fields += [
                Field(
                    own.strip(), bool(star), _TYPES.get(kind), tuple(p for p in parts if p != "*"),
                    "*" in parts, "strided" in comment, "NULL" in comment,
                )
                for own in names.split(",")
            ]  # fmt: skip
            if not star and kind == "double":
                fields[-len(names.split(",")) :] = [
                    field._replace(dtype=torch.float64)
                    for field in fields[-len(names.split(",")) :]
                ]
        letters = ["d" if field.dtype is torch.float64 else "q" for field in fields]
        found[name] = Loop(tuple(fields), struct.Struct(f"=q{''.join(letters)}"))
    return found


@functools.cache
def _walk(library: ctypes.CDLL) -> Any:
    walk = library.walk
    walk.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
    walk.restype = ctypes.c_int64
    return walk


class Later(torch.Tensor):
    """A tensor [r, c, ..., D] that is not made yet; who knows how may do without."""

    source: torch.Tensor  # what it is made of
    is_made_once: bool  # and kept, as its source does not change
    _made: torch.Tensor | None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, source: torch.Tensor, shape: Sequence[int]) -> Any:
        own = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=source.dtype)
        own.source, own.is_made_once, own._made = source, True, None
        return own

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _VIEWS:
            viewed = args[0]._viewed(args[1])
            if viewed is not None:
                return viewed
        args, kwargs = tree_map_only(Later, made, (args, kwargs or {}))
        return func(*args, **kwargs)

    def make(self) -> torch.Tensor:
        """The tensor, made of its source."""
        raise NotImplementedError

    @property
    def recipe(self) -> Callable[..., Later]:
        """What makes the like of another source, in a `shape`; it keeps no source."""
        raise NotImplementedError

    def like(self, source: torch.Tensor, shape: Sequence[int]) -> Later:
        """The same of another source, its rows in other dims."""
        return self.recipe(source, shape=shape)

    def made(self) -> torch.Tensor:
        """The tensor. Where calls are heard every reader has its own, and so is heard."""
        if self._made is not None:
            return self._made
        found = self.make()
        if self.is_made_once and not is_heard():
            self._made = found
        return found

    @property
    def is_made(self) -> bool:
        return self._made is not None

    def on(self, source: torch.Tensor) -> Later:
        """The same made of a source whose values change."""
        other = self.like(source, self.shape)
        other.is_made_once = False
        return other

    def _viewed(self, sizes: Sequence[int]) -> Later | None:
        """The same with its rows in other dims; None for other views."""
        if -1 in sizes:
            rest = -math.prod(sizes)
            sizes = [self.numel() // rest if size == -1 else size for size in sizes]
        is_same = len(sizes) > 2 and (*sizes[:2], sizes[-1]) == (*self.shape[:2], self.shape[-1])
        if not is_same or self.is_made:
            return None
        viewed = self.like(self.source, sizes)
        viewed.is_made_once = self.is_made_once
        return viewed


def made(x: torch.Tensor) -> torch.Tensor:
    """x with its values there."""
    return x.made() if isinstance(x, Later) else x


class Call(NamedTuple):
    """One call of a loop, as it was made."""

    name: str
    given: dict[str, Any]
    words: bytes  # what the loop read
    done: bool  # it did not refuse

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [value for value in self.given.values() if isinstance(value, torch.Tensor)]


def walk(
    words: torch.Tensor, starts: torch.Tensor, counters: torch.Tensor, first: int, count: int,
    threads: int,
) -> int:  # fmt: skip
    """Run the steps from `first` on; the first that has to be done in another way, or `count`."""
    library = native.library()
    assert library is not None
    pointers = (words.data_ptr(), starts.data_ptr(), counters.data_ptr())
    done: int = _walk(library)(*pointers, first, count, threads)
    return done


class _Own(threading.local):
    """Of each thread: where a single step begins, its counter, and who listens."""

    def __init__(self) -> None:
        self.start = ctypes.c_int64(0)
        self.counter = ctypes.create_string_buffer(8 * COUNTER_WORDS)
        self.listener: Callable[[Call], object] | None = None


_own = _Own()


@contextmanager
def listening(listener: Callable[[Call], object]) -> Iterator[None]:
    """Have every call of this thread told."""
    before, _own.listener = _own.listener, listener
    try:
        yield
    finally:
        _own.listener = before


def is_heard() -> bool:
    """Whether somebody listens to the calls of this thread."""
    return _own.listener is not None


def call(name: str, *, work: int | None = None, **given: torch.Tensor | int | float | None) -> bool:
    """Run one loop; False where it refused, and what it wrote means nothing.

    `work` is how many values are worth a thread; by itself the largest operand decides.
    """
    library = native.library()
    assert library is not None
    given |= {key: value.made() for key, value in given.items() if isinstance(value, Later)}
    words, largest = _words(name, library, given)
    threads = team_size() if (work or largest) >= WORTH_THREADS else 1
    start, counter = ctypes.byref(_own.start), _own.counter
    done: int = _walk(library)(words, start, counter, 0, 1, threads)
    if _own.listener is not None:
        _own.listener(Call(name, given, words, done == 1))
    return done == 1


def _words(
    name: str, library: ctypes.CDLL, given: dict[str, torch.Tensor | int | float | None]
) -> tuple[bytes, int]:
    """What the loop reads, and the size of its largest operand."""
    fields, layout = loops()[name]
    assert len(given) == len(fields), f"{name} takes {[field.name for field in fields]}"
    values, largest = [], 0
    for field in fields:
        value = given[field.name]
        if field.is_pointer and value is not None:
            assert isinstance(value, torch.Tensor)
            _check(name, field, value, given)
            largest = max(largest, value.numel())
            value = value.data_ptr()
        elif value is None:
            assert field.may_be_none, f"{name}: {field.name} is missing"
            value = 0
        values.append(value)
    return layout.pack(_address(library, name), *values), largest


def _check(name: str, field: Field, value: torch.Tensor, given: dict[str, Any]) -> None:
    """What a loop is given is what it reads: type, order in memory, size."""
    assert value.device.type == "cpu", f"{name}: {field.name} is on {value.device}"
    assert field.dtype in (None, value.dtype), f"{name}: {field.name} is of {value.dtype}"
    if field.is_strided:
        return
    assert value.is_contiguous(), f"{name}: {field.name} is not contiguous"
    size = math.prod(CONSTANTS.get(d) or (int(d) if d.isdigit() else given[d]) for d in field.dims)
    count = value.nbytes if "bytes" in field.dims else value.numel()
    fits = size > 0 and count % size == 0 if field.is_open else count == size
    assert fits, f"{name}: {field.name} of {tuple(value.shape)} is not {field.dims}"


@functools.cache
def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def team_size() -> int:
    """Threads that share a loop."""
    return torch.get_num_threads()


def can_run(*operands: torch.Tensor) -> bool:
    """Whether these tensors, in the types that the loop takes, can be handed to C."""
    return native.library() is not None and all(
        tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in operands
    )
