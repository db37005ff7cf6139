"""Errors on sources that a fit did not see, and the intervals that follow from them.

A table judged by its own other half looks better than it is: another release, harness or board errs
together. So each source is left out as a whole, and intervals come from what was left out. Rows
whose role is `judge` take no part in either; report.py says what they find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from models.registry import canonical_name
from perf.calibrate.fit import decode_rows, fit, prefill_rows
from perf.calibrate.published_rows import ELSEWHERE, Row, load_rows
from perf.cost.constants import Constants, fitted

MOSTLY = 0.8  # of the rows of a source left out, an interval is to hold


WIDER = 1.1  # quantiles of few sources fall short: of sources left out these hold 77 to 84 %


@dataclass
class Table:
    """Some rows, and their figures as functions of the constants."""

    rows: list[Row]

    def __post_init__(self) -> None:
        self.ttft_rows = np.array([i for i, row in enumerate(self.rows) if row.judges_ttft])
        self.decode = decode_rows(self.rows)
        self.prefill = prefill_rows([self.rows[i] for i in self.ttft_rows])
        self.document = np.array([row.document for row in self.rows])
        self.is_fit = np.array([row.role == "fit" for row in self.rows])
        self.serves = np.array([row.harness.serves for row in self.rows])

    def fit(self, names: tuple[str, str], start: Constants, chosen: np.ndarray) -> Constants:
        """Constants of a kind, first of decode rows, then of TTFT, from the chosen rows."""
        speed = np.flatnonzero(chosen & ~np.isnan(self.decode.measured))
        ttft = np.flatnonzero(chosen[self.ttft_rows])
        found = fit(self.decode, fitted(names[0]), start, rows=speed)
        return fit(self.prefill, fitted(names[1]), found, rows=ttft)

    def errors(self, constants: Constants) -> dict[str, np.ndarray]:
        """Logarithms of measured over predicted figures of all rows; none where no figure is."""
        speed = np.log(self.decode.predict(constants) / self.decode.measured)
        ttft = np.full(len(self.rows), np.nan)
        predicted = self.prefill.predict(constants)
        ttft[self.ttft_rows] = np.log(self.prefill.measured / predicted)
        return {"decode": speed, "ttft": ttft}


@dataclass
class Sources:
    """The table that basic constants are fitted to, and all others."""

    first: Table
    op_start: Constants  # constants from single ops
    other: Table = field(default_factory=lambda: Table(load_rows(ELSEWHERE)))

    def extended(self, start: Constants, chosen: np.ndarray) -> Constants:
        """Constants of servers, boards and later hosts, from chosen other rows."""
        return self.other.fit(("elsewhere", "elsewhere_ttft"), start, chosen)

    def shipped(self, start: Constants) -> Constants:
        """The constants that are written, from basic ones."""
        return self.extended(start, self.other.is_fit)

    @cached_property
    def left_out(self) -> dict[str, np.ndarray]:
        """Errors of all rows, first ones first, by constants that saw nothing of their document."""
        basic = ("decode", "prefill")
        other, seen = self.other, self.other.is_fit
        # what a server adds is fitted after the basic constants, which therefore come from demos
        demos = other.fit(basic, self.op_start, seen & ~other.serves)
        unseen_first = self.extended(demos, seen)
        whole = self.first.fit(basic, self.op_start, np.ones(len(self.first.rows), bool))
        found = {name: np.full(len(other.rows), np.nan) for name in ("decode", "ttft")}
        for document in dict.fromkeys(other.document[seen].tolist()):
            own = other.document == document
            errors = other.errors(self.extended(whole, seen & ~own))
            for name, values in found.items():
                values[own] = errors[name][own]
        errors = self.first.errors(unseen_first)
        return {name: np.concatenate([errors[name], found[name]]) for name in found}

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in (self.first, self.other)])

    def chosen(self, *, serves: bool, fits: bool = True) -> np.ndarray:
        """A mask over all rows by harness and role."""
        return (self._joined("is_fit") == fits) & (self._joined("serves") == serves)

    def ratios(self, name: str, *, serves: bool, without: str = "") -> tuple[float, float]:
        """Ratios of measured over predicted that hold most rows of a source left out."""
        errors = self.left_out[name]
        kept = self.chosen(serves=serves) & (self._joined("document") != without)
        edge = (1 - MOSTLY) / 2
        low, high = np.nanquantile(errors[kept], [edge, 1 - edge])
        middle, half = (low + high) / 2, WIDER * (high - low) / 2
        return float(np.exp(middle - half)), float(np.exp(middle + half))

    def coverage(self, name: str, *, serves: bool) -> float:
        """Share of rows of documents left out that intervals of the other documents hold."""
        held: list[bool] = []
        kept, documents = self.chosen(serves=serves), self._joined("document")
        for document in dict.fromkeys(documents[kept].tolist()):
            errors = self.left_out[name][kept & (documents == document)]
            held += _held(errors, self.ratios(name, serves=serves, without=document))
        return float(np.mean(held))

    def judged(self, name: str, constants: Constants, *, serves: bool) -> tuple[np.ndarray, float]:
        """Errors of the rows that took no part in anything, and how many of them are held."""
        other = self.other
        errors = other.errors(constants)[name][~other.is_fit & (other.serves == serves)]
        return errors, float(np.mean(_held(errors, self.ratios(name, serves=serves))))

    def provenance(self) -> dict[str, object]:
        """Intervals, and what was fitted: the farther from it, the wider they get."""
        fits = [row for row in self.other.rows if row.role == "fit"]
        known = [*self.first.rows, *fits]
        return {
            "interval": {
                f"{name} {harness}": [round(ratio, 3) for ratio in self.ratios(name, serves=serves)]
                for name in ("decode", "ttft")
                for harness, serves in (("demo", False), ("server", True))
            },
            "fitted_devices": sorted({row.device for row in known}),
            "fitted_models": sorted({str(canonical_name(row.model)) for row in known}),
            "fitted_software": sorted({row.software.name.split("+")[0] for row in known}),
            "longest_context": max(row.prefill_len for row in known),
        }


def _held(errors: np.ndarray, ratios: tuple[float, float]) -> list[bool]:
    values = errors[~np.isnan(errors)]
    return ((values >= np.log(ratios[0])) & (values <= np.log(ratios[1]))).tolist()


def mean_error(errors: Sequence[float] | np.ndarray) -> float:
    """Mean absolute error in percent of predictions, from logarithms of measured / predicted."""
    values = np.asarray(errors)
    values = values[~np.isnan(values)]
    return 100 * float(np.mean(np.abs(np.expm1(-values)))) if len(values) else float("nan")
