"""Every number that a user may give, by name: its kind and its bounds, the same in all programs."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """A number from `low` to `high`, both allowed; `whole` ones have no fraction."""

    low: float
    high: float
    whole: bool = True

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        return f"use a {kind} from {self.low} to {self.high}"


NUMBERS = {
    "batch_size": Bounds(1, 32),
    "repeat_batches": Bounds(1, 10_000),
    "max_seq_len": Bounds(1, 2**24),
    "max_generated_tokens": Bounds(1, 10_000_000),
    "generated": Bounds(1, 10_000_000),
    "prefill_len": Bounds(1, 2**24),
    "data_parallel": Bounds(1, 1024),
    "num_layers": Bounds(1, 10_000),
    "start_pos": Bounds(0, 2**24),
    "block_size": Bounds(32, 128),
    "num_blocks": Bounds(1, 2**24),
    "max_num_blocks": Bounds(1, 2**24),
    "images": Bounds(0, 64),
    "steps": Bounds(1, 100_000),
    "timeout": Bounds(0.001, 1e6, whole=False),
    "seed": Bounds(-(2**63), 2**63 - 1),
    "top_k": Bounds(0, 2**24),  # 0: no limit
    "temperature": Bounds(0, 100, whole=False),
    "top_p": Bounds(0, 1, whole=False),
    "presence_penalty": Bounds(-100, 100, whole=False),
    "frequency_penalty": Bounds(-100, 100, whole=False),
    "repetition_penalty": Bounds(0.01, 100, whole=False),  # 1: none
}


def check_number(name: str, value: object, called: str = "") -> None:
    """Refuse a value that the number `name` may not have; `called` is the user's word for it."""
    bounds = NUMBERS[name]
    fits = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float) and not bounds.whole:
        fits = math.isfinite(value)
    if not fits or not bounds.low <= value <= bounds.high:  # type: ignore[operator]
        raise ValueError(f"{called or name} is {shortened(value)}: {bounds}")


def read_number(name: str, text: str) -> int | float:
    """The number that a text says, within the bounds of `name`."""
    bounds = NUMBERS[name]
    value: object = text
    with contextlib.suppress(ValueError):  # the text itself is then refused, and shown
        value = int(text) if bounds.whole else float(text)
    check_number(name, value, "the value")
    return value  # type: ignore[return-value]


def argument(name: str) -> Callable[[str], int | float]:
    """A reader of a command-line argument for argparse, which shows its errors as one line."""

    def read(text: str) -> int | float:
        try:
            return read_number(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def shortened(value: object) -> str:
    """A value as an error shows it."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"about {'-' if value < 0 else ''}2**{value.bit_length()}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def counted(number: int, noun: str) -> str:
    """1 user, 2 users."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
