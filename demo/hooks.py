"""Looks into a running model without changing it: a method of some objects, wrapped for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def wrapped(
    objects: Sequence[Any], method: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace `method` of every object by wrap(method) within the block; blocks may nest."""
    before = [vars(thing).get(method) for thing in objects]
    for thing in objects:
        setattr(thing, method, wrap(getattr(thing, method)))
    try:
        yield
    finally:
        for thing, own in zip(objects, before, strict=True):
            if own is None:
                delattr(thing, method)  # the class's method is back
            else:
                setattr(thing, method, own)
