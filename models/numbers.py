"""Every number that a user may give, by name: its kind and its bounds, the same in all programs.

What files of others say is read through fields.py, device facts in backends/device_specs.py.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.config import SIZES
from models.fields import shown


@dataclass(frozen=True)
class Bounds:
    """A number from `low` to `high`, both allowed; `whole` ones have no fraction."""

    low: float
    high: float
    whole: bool = True
    step: int = 1  # only multiples of this
    doubled: bool = False  # only `low`, twice that, four times and so on
    unit: str = ""

    def __str__(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        if self.doubled:
            *others, last = (str(n) for n in range(int(self.low), int(self.high) + 1) if n in self)
            return f"use {', '.join(others)} or {last}{unit}"
        kind = "whole number" if self.whole else "number"
        kind = kind if self.step == 1 else f"multiple of {self.step}"
        low, high = (f"{end:g}" if isinstance(end, float) else end for end in (self.low, self.high))
        return f"use a {kind} from {low} to {high}{unit}"

    def __contains__(self, value: object) -> bool:
        """Whether a value is of the kind and within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if not self.low <= value <= self.high or (self.whole and value % self.step):
            return False
        times, rest = divmod(int(value), int(self.low) or 1)
        return not self.doubled or (not rest and times.bit_count() == 1)


LENGTH = Bounds(1, 2**24)  # tokens
COUNT = Bounds(1, 10_000)
ANSWER = Bounds(1, 10_000_000)  # tokens
BYTES = Bounds(1, 2**40)
LAYERS = Bounds(*SIZES["num_layers"])
PENALTY = Bounds(-100, 100, whole=False)

NUMBERS = {
    "batch_size": Bounds(1, 32, doubled=True),
    "block_size": Bounds(32, 128, doubled=True),
    "data_parallel": Bounds(1, 1024),
    "frequency_penalty": PENALTY,
    "generated": ANSWER,
    "images": Bounds(0, 8),  # of one prompt: their states wait on the device until it is prefilled
    "limit_ms": Bounds(0.001, 1e9, whole=False, unit="milliseconds"),
    "max_generated_tokens": ANSWER,
    "max_num_blocks": LENGTH,
    "max_prefill_chunk": Bounds(1, 1024, unit="thousands of tokens"),
    "max_seq_len": LENGTH,
    "num_layers": LAYERS,
    "pad_mlp_cores": Bounds(8, 64, step=8),
    "port": Bounds(1, 65535),
    "prefill_len": LENGTH,
    "presence_penalty": PENALTY,
    "repeat_batches": COUNT,
    "repetition_penalty": Bounds(0.01, 100, whole=False),  # 1: none
    "requests": COUNT,
    "seed": Bounds(-(2**63), 2**63 - 1),
    "splits": Bounds(6, 1000),
    "start_pos": Bounds(0, 2**24),
    "steps": COUNT,
    "temperature": Bounds(0, 100, whole=False),
    "threads": Bounds(1, 256),
    "timeout": Bounds(0.001, 1e7, whole=False, unit="seconds"),
    "tokens": Bounds(2, 2**20),  # of a reference's text
    "top_k": Bounds(0, 2**24),  # 0: no limit
    "top_p": Bounds(0, 1, whole=False),
    "trace_region_size": BYTES,
    "users": Bounds(1, 32 * 1024),  # of all data-parallel groups
    "warm_prompts": Bounds(0, 2**24),  # tokens
    "worker_l1_size": BYTES,
}


class _Refused(argparse.ArgumentTypeError, ValueError):
    """argparse shows the words of the first; who calls a reader by itself expects the second."""


def check_number(name: str, value: object, called: str = "") -> None:
    """Refuse a value that the number `name` may not have; `called` is the user's word for it."""
    bounds = NUMBERS[name]
    if value not in bounds:
        raise _Refused(f"{called or name} is {shown(value)}: {bounds}")


def read_number(name: str, text: str, called: str = "the value") -> Any:
    """The number that a text says, within the bounds of `name`."""
    value = _number(text.strip(), whole=NUMBERS[name].whole)
    check_number(name, text if value is None else value, called)
    return value


def _number(text: str, *, whole: bool) -> int | float | None:
    """None: it is none. Python would read 1_000 and other scripts' digits, too."""
    if not text.isascii() or "_" in text or len(text) > 40:
        return None
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def argument(name: str) -> Callable[[str], Any]:
    """A reader of the number `name`; for argparse's and pytest's `type`."""
    return lambda text: read_number(name, text)


def arguments(name: str) -> Callable[[str], tuple[Any, ...]]:
    """A reader of several such numbers, separated by commas."""
    return lambda text: tuple(read_number(name, part) for part in text.split(","))


def counted(number: int, noun: str) -> str:
    """1 user, 2 users."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
