"""Wall-clock times of named parts of a run. What they mean is decided in metrics.py."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Profiler:
    """Seconds by name; a name may be timed many times (iterations)."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Note a time measured elsewhere."""
        self._seconds[name].append(seconds)

    def times(self, name: str) -> list[float]:
        """Every time of a name, in order; empty if the part never ran."""
        return list(self._seconds.get(name, ()))

    def total(self, name: str) -> float:
        """Seconds of a name in all."""
        return sum(self.times(name))
