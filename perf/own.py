"""What this repository's own op lists are predicted to reach, beside each published row.

    python -m perf.report --own    every row with its ratio; exits 1 if one is too slow

A ratio above 1 means that ours is predicted to be faster than what was published. targets.json
keeps the figures (`own`), and perf/gate.py refuses a change that worsens one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from backends.device_specs import SPECS
from perf.calibrate.published_rows import Row, load_rows
from perf.cost.constants import round_to
from perf.cost.software import OWN
from perf.predict.figures import Prediction, predict, workload_for

LEAST_SPEED, LEAST_TTFT = 0.97, 0.95  # ratios that no row may fall below


@dataclass(frozen=True)
class Comparison:
    """One published row and ours."""

    row: Row

    @cached_property
    def own(self) -> Prediction:
        """Predicted from our op list, with nothing but what it says."""
        row = self.row
        workload = workload_for(
            row.model,
            SPECS[row.device],
            software=OWN,
            batch_size=row.batch_size,
            data_parallel=row.data_parallel,
            prefill_len=row.prefill_len,
            optimizations=row.optimizations,
        )
        return predict(workload, software=OWN)

    @property
    def key(self) -> str:
        """The row's name, its precision spelled out where that is not a preset's."""
        return f"{self.row} {self.row.precision}" if self.row.mode == "custom" else str(self.row)

    @property
    def speed_ratio(self) -> float | None:
        """Our tokens/s/user over the published ones."""
        published = self.row.tokens_per_s_per_user
        return self.own.tokens_per_s_per_user / published if published else None

    @property
    def ttft_ratio(self) -> float | None:
        """The published TTFT over ours; None where the published one cannot be compared."""
        published = self.row.ttft_ms
        return published / self.own.ttft_ms if published and self.row.judges_ttft else None

    @property
    def misses(self) -> bool:
        """Whether we are predicted to be too slow."""
        return (self.speed_ratio or 1) < LEAST_SPEED or (self.ttft_ratio or 1) < LEAST_TTFT

    def as_json(self) -> dict[str, float]:
        """What targets.json keeps."""
        figures = {
            "tokens_per_s_per_user": self.own.tokens_per_s_per_user,
            "speed_ratio": self.speed_ratio,
            "ttft_ms": self.own.ttft_ms,
            "ttft_ratio": self.ttft_ratio,
        }
        return {name: round_to(value, 4) for name, value in figures.items() if value is not None}


def comparisons() -> Iterator[Comparison]:
    """All published rows that are modelled."""
    return map(Comparison, load_rows())


def own_lines(found: list[Comparison]) -> list[str]:
    """A table as text, the slowest row first, and how many rows are too slow."""
    lines = [
        "speed in tokens/s/user and TTFT in ms: published, modelled for this repository, ratio "
        "(above 1: ours is faster)"
    ]
    for one in sorted(found, key=lambda c: c.speed_ratio or 9):
        row, own = one.row, one.own
        speed = _figures(row.tokens_per_s_per_user, own.tokens_per_s_per_user, one.speed_ratio, 1)
        ttft = _figures(row.ttft_ms, own.ttft_ms, one.ttft_ratio, 0)
        mark = "  too slow" if one.misses else ""
        lines.append(f"{one.key[:64]:64s} speed {speed}  TTFT {ttft}{mark}")
    slow = sum(one.misses for one in found)
    lines.append(
        f"{len(found) - slow} of {len(found)} rows reach {LEAST_SPEED} of the published speed and "
        f"{LEAST_TTFT} of its TTFT"
    )
    return lines


def _figures(published: float | None, own: float, ratio: float | None, digits: int) -> str:
    shown = "-" if published is None else f"{published:.{digits}f}"
    return f"{shown:>8} {own:9.{digits}f} {'-' if ratio is None else f'{ratio:.3f}':>6}"
