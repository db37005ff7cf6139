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
from perf.predict.interval import kind_of

MOSTLY = 0.8  # of the rows of a source left out, an interval is to hold


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
        self.kind = np.array(
            [
                kind_of(row.model, row.device, row.software, serves=row.harness.serves)
                for row in self.rows
            ]
        )

    def fit(
        self, names: tuple[str, str], start: Constants, chosen: np.ndarray,
        near: Constants | None = None,
    ) -> Constants:  # fmt: skip
        """Constants of a kind, first of decode rows, then of TTFT, from the chosen rows."""
        speed = np.flatnonzero(chosen & ~np.isnan(self.decode.measured))
        ttft = np.flatnonzero(chosen[self.ttft_rows])
        found = fit(self.decode, fitted(names[0]), start, rows=speed, near=near)
        return fit(self.prefill, fitted(names[1]), found, rows=ttft, near=near)

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

    def extended(
        self, start: Constants, chosen: np.ndarray, near: Constants | None = None
    ) -> Constants:
        """Constants of servers, boards and later hosts, from chosen other rows."""
        return self.other.fit(("elsewhere", "elsewhere_ttft"), start, chosen, near)

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
        near = self.extended(whole, seen)
        found = {name: np.full(len(other.rows), np.nan) for name in ("decode", "ttft")}
        for document in dict.fromkeys(other.document[seen].tolist()):
            own = other.document == document
            errors = other.errors(self.extended(whole, seen & ~own, near))
            for name, values in found.items():
                values[own] = errors[name][own]
        errors = self.first.errors(unseen_first)
        return {name: np.concatenate([errors[name], found[name]]) for name in found}

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in (self.first, self.other)])

    def chosen(self, *, serves: bool, fits: bool = True) -> np.ndarray:
        """A mask over all rows by harness and role."""
        return (self._joined("is_fit") == fits) & (self._joined("serves") == serves)

    @cached_property
    def is_far(self) -> np.ndarray:
        """Whether no other fitted document has the row's kind, as a mask over all rows."""
        kinds, documents = self._joined("kind"), self._joined("document")
        sources: dict[str, set[str]] = {}
        for kind, document, fits in zip(kinds, documents, self._joined("is_fit"), strict=True):
            if fits:
                sources.setdefault(kind, set()).add(document)
        return np.array(
            [not sources.get(k, set()) - {d} for k, d in zip(kinds, documents, strict=True)]
        )

    def far(self, name: str, *, serves: bool) -> float:
        """How much farther off a harness's rows are whose kind no other document has."""
        size, fits = np.abs(self.left_out[name]), self.chosen(serves=serves)
        near, far = (np.nanmean(size[fits & mask]) for mask in (~self.is_far, self.is_far))
        return max(1.0, float(far / near))

    def ratios(self, name: str, *, serves: bool) -> tuple[float, float]:
        """Ratios of measured over predicted that hold most of a source left out.

        They are those of a kind that is known; of another the logarithms are far() times as large.
        """
        return self._ratios(name, self._beyond(name, serves=serves), serves=serves)

    def coverage(self, name: str, *, serves: bool) -> tuple[float, float]:
        """Share of rows left out that intervals of the other documents hold, and by document."""
        return self._coverage(name, self._beyond(name, serves=serves), serves=serves)

    def _beyond(self, name: str, *, serves: bool) -> float:
        """Share of errors past either edge: the most with which those left out are held.

        A new source errs more than known ones do. So edges lie where intervals of all other
        documents held a document's rows, counted by row and by document alike.
        """
        shares = np.linspace(1 - MOSTLY, 0.01, 191).tolist()
        for share in shares:
            if np.mean(self._coverage(name, share, serves=serves)) >= MOSTLY:
                break
        return share

    def _ratios(
        self, name: str, beyond: float, *, serves: bool, without: str = ""
    ) -> tuple[float, float]:
        errors, documents = self.left_out[name], self._joined("document")
        kept = self.chosen(serves=serves) & (documents != without) & ~np.isnan(errors)
        scaled = errors[kept] / np.where(self.is_far[kept], self.far(name, serves=serves), 1.0)
        low, high = edges(scaled, documents[kept], beyond)
        return float(np.exp(low)), float(np.exp(high))

    def _coverage(self, name: str, beyond: float, *, serves: bool) -> tuple[float, float]:
        errors, kept = self.left_out[name], self.chosen(serves=serves)
        held = []
        for document in dict.fromkeys(self._joined("document")[kept].tolist()):
            own = kept & (self._joined("document") == document)
            ratios = self._ratios(name, beyond, serves=serves, without=document)
            held.append(self._held(name, errors, own, ratios, serves=serves))
        return _shares(held)

    def judged(self, name: str, constants: Constants, *, serves: bool) -> tuple[float, float]:
        """The same of rows that took no part in anything."""
        nothing = np.full(len(self.first.rows), np.nan)
        errors = np.concatenate([nothing, self.other.errors(constants)[name]])
        aside, ratios = self.chosen(serves=serves, fits=False), self.ratios(name, serves=serves)
        documents = self._joined("document")
        return _shares(
            [
                self._held(name, errors, aside & (documents == document), ratios, serves=serves)
                for document in dict.fromkeys(documents[aside].tolist())
            ]
        )

    def _held(
        self, name: str, errors: np.ndarray, own: np.ndarray, ratios: tuple[float, float], *,
        serves: bool,
    ) -> list[bool]:  # fmt: skip
        """Which of some rows' errors lie within their intervals."""
        own = own & ~np.isnan(errors)
        values = errors[own] / np.where(self.is_far[own], self.far(name, serves=serves), 1.0)
        return ((values >= np.log(ratios[0])) & (values <= np.log(ratios[1]))).tolist()

    def provenance(self) -> dict[str, object]:
        """Intervals, and what was fitted: the farther from it, the wider they get."""
        fits = [row for row in self.other.rows if row.role == "fit"]
        known = [*self.first.rows, *fits]
        figures = [
            (f"{name} {harness}", name, serves)
            for name in ("decode", "ttft")
            for harness, serves in (("demo", False), ("server", True))
        ]
        return {
            "interval": {
                what: [round(ratio, 3) for ratio in self.ratios(name, serves=serves)]
                for what, name, serves in figures
            },
            "far": {
                what: round(self.far(name, serves=serves), 3) for what, name, serves in figures
            },
            "fitted_kinds": sorted(set(self._joined("kind")[self._joined("is_fit")].tolist())),
            "fitted_devices": sorted({row.device for row in known}),
            "fitted_models": sorted({str(canonical_name(row.model)) for row in known}),
            "fitted_software": sorted({row.software.name.split("+")[0] for row in known}),
            "longest_context": max(row.prefill_len for row in known),
        }


def edges(errors: np.ndarray, documents: np.ndarray, beyond: float) -> np.ndarray:
    """Quantiles of errors, `beyond` below and above them.

    One table has half of all rows, other sources have one, and rows of one source err alike: a
    third of the weight is shared by all rows, the rest by all sources.
    """
    _, source, sizes = np.unique(documents, return_inverse=True, return_counts=True)
    weights = 1 / len(errors) + 2 / (len(sizes) * sizes[source])
    order = np.argsort(errors)
    below = np.cumsum(weights[order]) - weights[order] / 2
    return np.interp([beyond, 1 - beyond], below / weights.sum(), errors[order])


def _shares(held: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """Mean of all rows, and of the means of those documents that have any."""
    rows = [row for document in held for row in document]
    return float(np.mean(rows)), float(
        np.mean([np.mean(document) for document in held if document])
    )


def mean_error(errors: Sequence[float] | np.ndarray) -> float:
    """Mean absolute error in percent of predictions, from logarithms of measured / predicted."""
    values = np.asarray(errors)
    values = values[~np.isnan(values)]
    return 100 * float(np.mean(np.abs(np.expm1(-values)))) if len(values) else float("nan")
