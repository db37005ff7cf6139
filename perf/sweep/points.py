"""Predictions over devices, batches, contexts, precisions and groups, and what fits.

Every figure is modelled (perf/predict). Next: text.py and plot.py show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from perf.predict.figures import predict, workload_for
from perf.predict.harness import HARNESSES
from perf.predict.what_if import Setting

BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Point:
    """One configuration and its figures; `refused` says why there are none."""

    device: str
    optimizations: str
    data_parallel: int
    batch: int  # users of one data-parallel group
    context: int  # tokens of a prompt
    software: str = "own"
    tokens_per_s_per_user: float | None = None
    low: float | None = None
    high: float | None = None
    tokens_per_s: float | None = None
    ttft_ms: float | None = None
    watts: float | None = None
    watts_of: str = ""  # "boards", or "chips" alone where no power of the boards is published
    tokens_per_s_per_watt: float | None = None
    tokens_per_s_per_board: float | None = None
    on_front: bool = False
    refused: str = ""


@dataclass(frozen=True)
class Room:
    """What fits one device at a precision and number of groups."""

    device: str
    optimizations: str
    data_parallel: int
    largest_batch: dict[int, int]  # by context
    longest_context: dict[int, int]  # by batch


@dataclass(frozen=True)
class Sweep:
    """What is asked for."""

    model: str
    settings: tuple[Setting, ...]
    batches: tuple[int, ...] = (1, 8, 32)
    contexts: tuple[int, ...] = (128, 4096)
    optimizations: tuple[str, ...] = ("performance",)
    data_parallel: tuple[int, ...] = (1,)
    harness: str = "demo"
    generated: int = 200

    def points(self) -> list[Point]:
        """All figures; those on the front of latency and throughput at their context are marked."""
        found = [
            self.point(where, opt, groups, batch, context)
            for where, opt, groups, context, batch in product(
                self.settings, self.optimizations, self.data_parallel, self.contexts, self.batches
            )
        ]
        return mark_front(found)

    def point(self, where: Setting, opt: str, groups: int, batch: int, context: int) -> Point:
        """One prediction, or why it is refused."""
        spec, harness = where.spec, HARNESSES[self.harness]
        asked = Point(spec.name, opt, groups, batch, context, where.software.name)
        try:
            workload = workload_for(
                self.model, spec, software=where.software, harness=harness, batch_size=batch,
                data_parallel=groups, prefill_len=context, optimizations=opt,
                generated=self.generated,
            )  # fmt: skip
            found = predict(
                workload, software=where.software, harness=harness, constants=where.constants
            )
        except ValueError as error:
            return replace(asked, refused=str(error))
        low, high = found.interval["tokens_per_s_per_user"]
        watts, watts_of = spec.watts
        return replace(
            asked,
            tokens_per_s_per_user=found.tokens_per_s_per_user,
            low=low,
            high=high,
            tokens_per_s=found.tokens_per_s,
            ttft_ms=found.ttft_ms,
            watts=watts or None,
            watts_of=watts_of if watts else "",
            tokens_per_s_per_watt=found.tokens_per_s / watts if watts else None,
            tokens_per_s_per_board=found.tokens_per_s / spec.boards,
        )

    def room(self) -> list[Room]:
        """Largest batches and longest contexts that fit, by the same memory rules as loading."""
        return [
            Room(
                where.spec.name,
                opt,
                groups,
                {c: max((b for b in BATCHES if self.fits(where, opt, groups, b, c)), default=0)
                 for c in self.contexts},
                {b: self._longest(where, opt, groups, b) for b in self.batches},
            )
            for where, opt, groups in product(
                self.settings, self.optimizations, self.data_parallel
            )
        ]  # fmt: skip

    def fits(self, where: Setting, opt: str, groups: int, batch: int, context: int) -> bool:
        """Whether weights, caches and working buffers find room."""
        from models.registry import load_config
        from perf.op_lists.record import blueprint

        workload = workload_for(
            self.model, where.spec, software=where.software, batch_size=batch,
            data_parallel=groups, prefill_len=context, optimizations=opt, generated=1,
        )  # fmt: skip
        config = load_config(self.model)
        try:
            blueprint(workload, config)
        except ValueError:
            return False
        return context <= config.max_position_embeddings

    def _longest(self, where: Setting, opt: str, groups: int, batch: int) -> int:
        """In steps of 1024 tokens, by halving."""
        low, high = 0, 1024
        if not self.fits(where, opt, groups, batch, 128):
            return 0
        while self.fits(where, opt, groups, batch, 1024 * high) and high < 4096:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(where, opt, groups, batch, 1024 * middle):
                low = middle
            else:
                high = middle
        return 1024 * low


def mark_front(points: Sequence[Point]) -> list[Point]:
    """Mark points that no other at their context beats in both latency and throughput."""

    def beaten(p: Point) -> bool:
        return any(
            q.context == p.context
            and (q.tokens_per_s_per_user or 0) >= (p.tokens_per_s_per_user or 0)
            and (q.tokens_per_s or 0) >= (p.tokens_per_s or 0)
            and (q.tokens_per_s_per_user, q.tokens_per_s)
            != (p.tokens_per_s_per_user, p.tokens_per_s)
            for q in points
        )

    return [replace(p, on_front=not p.refused and not beaten(p)) for p in points]
