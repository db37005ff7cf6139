"""Fits on some rows and judges on the others: halves, one device or family left out, intervals.

Constants come from single-op timings first, then from published rows of whole models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from perf.calibrate.fit import Observed, decode_rows, fit, op_rows, prefill_rows
from perf.calibrate.op_rows import OpRow, load_op_rows
from perf.calibrate.published_rows import Row, load_rows, twins
from perf.cost.constants import Constants, fitted


@dataclass
class Data:
    """Rows and everything that is needed to predict them; built once."""

    rows: list[Row]
    ops: list[OpRow]
    not_ops: list[str]
    decode: Observed = field(init=False)
    prefill: Observed = field(init=False)
    op: Observed = field(init=False)
    op_start: Constants = field(init=False)

    def __post_init__(self) -> None:
        self.ttft_rows = [i for i, row in enumerate(self.rows) if row.judges_ttft]
        self.decode = decode_rows(self.rows)
        self.prefill = prefill_rows([self.rows[i] for i in self.ttft_rows])
        self.op = op_rows(self.ops)
        self.op_start = fit(self.op, fitted("ops"), Constants())

    @classmethod
    def load(cls) -> Data:
        """All published rows."""
        return cls(load_rows(), *load_op_rows())

    def calibrated(self, chosen: np.ndarray) -> Constants:
        """Constants from single ops and the chosen rows (a mask over all rows)."""
        found = fit(self.decode, fitted("decode"), self.op_start, rows=np.flatnonzero(chosen))
        return fit(self.prefill, fitted("prefill"), found, rows=np.flatnonzero(self.ttft(chosen)))

    def ttft(self, chosen: np.ndarray) -> np.ndarray:
        """The mask over the rows whose TTFT counts."""
        return chosen[self.ttft_rows]

    def speed_errors(self, constants: Constants) -> np.ndarray:
        """Relative error of predicted tokens/s/user, signed."""
        return self.decode.measured / self.decode.predict(constants) - 1

    def ttft_errors(self, constants: Constants) -> np.ndarray:
        """Relative error of predicted TTFT, signed."""
        return self.prefill.predict(constants) / self.prefill.measured - 1

    def op_errors(self, constants: Constants) -> np.ndarray:
        """Relative error of single ops, signed."""
        return self.op.predict(constants) / self.op.measured - 1


def half(rows: Sequence[Row], number: int) -> np.ndarray:
    """A mask of one half of the rows; rows that are the same configuration stay together."""
    groups = list(range(len(rows)))
    index = {id(row): i for i, row in enumerate(rows)}
    for first, second in twins(rows):
        groups[index[id(second)]] = groups[index[id(first)]]
    order = np.random.default_rng(number).permutation(sorted(set(groups)))
    sizes = {g: groups.count(g) for g in order.tolist()}
    chosen, taken = set(), 0
    for group in order.tolist():
        if taken < len(rows) // 2:
            chosen.add(group)
            taken += sizes[group]
    return np.array([group in chosen for group in groups])


@dataclass(frozen=True)
class Judged:
    """Errors on the rows that one fit did not see."""

    name: str
    constants: Constants
    fitted_rows: np.ndarray
    speed: np.ndarray  # errors of the unseen rows
    ttft: np.ndarray
    speed_rows: np.ndarray  # their numbers
    ttft_rows: np.ndarray


def judge(data: Data, name: str, chosen: np.ndarray) -> Judged:
    """Fit on the chosen rows, look at the others."""
    constants = data.calibrated(chosen)
    unseen, unseen_ttft = np.flatnonzero(~chosen), np.flatnonzero(~data.ttft(chosen))
    return Judged(
        name,
        constants,
        np.flatnonzero(chosen),
        data.speed_errors(constants)[unseen],
        data.ttft_errors(constants)[unseen_ttft],
        unseen,
        np.array(data.ttft_rows)[unseen_ttft],
    )


def leave_out(data: Data, attribute: str) -> list[Judged]:
    """One fit for each device or family, on all rows but its own."""
    values = [getattr(row, attribute) for row in data.rows]
    return [
        judge(data, value, np.array([other != value for other in values]))
        for value in dict.fromkeys(values)
    ]


def stretch(data: Data, splits: Sequence[Judged]) -> dict[str, float]:
    """How much wider errors spread where a whole board or family is left out, not half the rows."""
    found = {}
    for name, errors_of in (("decode", lambda s: s.speed), ("ttft", lambda s: s.ttft)):
        usual = np.abs(np.concatenate([errors_of(s) for s in splits])).mean()
        left = [leave_out(data, attribute) for attribute in ("device", "family")]
        most = max(np.abs(np.concatenate([errors_of(s) for s in out])).mean() for out in left)
        found[name] = round(max(1.0, float(most / usual)), 3)
    return found
