"""Finds constants from rows: a fast evaluation of many predictions, and a least-squares search.

The same ops occur in many rows, and each depends on few constants: every distinct op is timed once
per trial, and again only for the constants it asked for. Errors are of logarithms, so a row counts
by its ratio; guesses (constants.py) pull weakly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.sparse import csr_matrix, lil_matrix

from perf.calibrate.op_rows import OpRow
from perf.calibrate.published_rows import Row
from perf.cost.constants import LOOSE, TIGHT, Constants, facts
from perf.cost.price import kernel_us, physical_limit
from perf.cost.units import BESIDE, Situation
from perf.op_lists.kept import run_ops
from perf.op_lists.record import OpList, RunOps
from perf.predict.figures import Dispatch, gap_us, launched
from perf.predict.host import PrefillRun, decode_host_ms

STEP = 1e-3  # of a logarithm, for slopes


class _Watched:
    """Stands in for Constants and notes which of them are asked for."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> float:
        self.seen.add(name)
        return getattr(self._constants, name)


class OpTable:
    """Distinct ops of many lists, timed together."""

    def __init__(self) -> None:
        self.ops: list[tuple[Any, int]] = []  # with the number of its situation
        self.needs: list[set[str]] = []
        self._limits: list[float] = []  # microseconds that no constants change
        self._states: dict[Any, tuple[int, Situation]] = {}
        self._numbers: dict[Any, int] = {}

    def add(self, record: Any, state: Situation) -> int:
        """Number of an op; equal ops in equal states share one."""
        decode = record.name.endswith("attention_decode")
        key = (
            record.name, record.inputs, record.outputs, repr(record.attributes), record.cost,
            record.scope.rpartition(".")[2], state.spec, state.software.name, state.is_grid,
            state.isolated, state.prefill, (state.context, state.active_users) if decode else None,
        )  # fmt: skip
        number = self._numbers.setdefault(key, len(self.ops))
        if number == len(self.ops):
            watched: Any = _Watched(state.constants)
            kernel_us(record, replace(state, constants=watched))
            known = (
                state.spec, state.software.name, state.context, state.active_users, state.is_grid,
                state.isolated, state.prefill,
            )  # fmt: skip
            place, _ = self._states.setdefault(known, (len(self._states), state))
            self.ops.append((record, place))
            self.needs.append(watched.seen)
            self._limits.append(physical_limit(record, state).us)
        return number

    def times(self, constants: Constants) -> np.ndarray:
        """Microseconds of every op."""
        return self._timed(np.empty(len(self.ops)), range(len(self.ops)), constants)

    def changed(self, times: np.ndarray, constants: Constants, name: str) -> np.ndarray:
        """Times after a change of one constant."""
        moved = [i for i, needs in enumerate(self.needs) if name in needs]
        return self._timed(times.copy(), moved, constants)

    def _timed(self, times: np.ndarray, which: Iterable[int], c: Constants) -> np.ndarray:
        states = [replace(state, constants=c) for _, state in self._states.values()]
        for i in which:
            record, state = self.ops[i]
            times[i] = max(self._limits[i], kernel_us(record, states[state]))
        return times


@dataclass(frozen=True)
class Observed:
    """One kind of figure of many rows: what is measured, and how it follows from op times."""

    measured: np.ndarray
    table: OpTable
    counts: csr_matrix  # [row, op]; sparse, and free of BLAS threads
    combine: Callable[[np.ndarray, Constants], np.ndarray]  # sums of op times -> figures
    sigma: float  # spread of the logarithm that is taken for noise

    def predict(self, constants: Constants, times: np.ndarray | None = None) -> np.ndarray:
        """Figures of all rows (milliseconds, or microseconds for single ops)."""
        if times is None:
            times = self.table.times(constants)
        return self.combine(self.counts @ times, constants)


def row_state(row: Row, run: RunOps) -> Situation:
    """How the cost model sees a published row; constants are filled in later."""
    workload = row.workload
    grid = min(run.mesh_shape) > 1
    spec, users = run.spec(workload.spec), workload.batch_size
    return Situation(spec, Constants(), row.software, workload.context, users, grid)


def _count(lists: Sequence[tuple[OpList, Situation]]) -> tuple[OpTable, csr_matrix, np.ndarray]:
    """Table, counts [row, op], and launches of each row."""
    table = OpTable()
    numbered = [
        [
            (table.add(op.record, state), op.count)
            for op in launched(ops)
            if op.record.name not in BESIDE  # hidden by the ops of every published step
        ]
        for ops, state in lists
    ]
    counts = lil_matrix((len(lists), len(table.ops)))
    for row, ops in enumerate(numbered):
        for number, count in ops:
            counts[row, number] += count
    return table, csr_matrix(counts), np.asarray(counts.sum(axis=1)).ravel()


def _gaps(lists: Sequence[tuple[OpList, Situation]], c: Constants) -> np.ndarray:
    return np.array([gap_us(ops, replace(state, constants=c)) for ops, state in lists])


def decode_rows(rows: Sequence[Row]) -> Observed:
    """Milliseconds of a decode step."""
    runs = [run_ops(row.workload) for row in rows]
    states = [row_state(row, run) for row, run in zip(rows, runs, strict=True)]
    lists = [(run.decode, state) for run, state in zip(runs, states, strict=True)]
    table, counts, launches = _count(lists)

    def combine(sums: np.ndarray, c: Constants) -> np.ndarray:
        device = (sums + launches * _gaps(lists, c)) / 1000
        host = [
            decode_host_ms(
                run, replace(state, constants=c), row.data_parallel, row.harness, device_ms=ms
            )
            for run, row, state, ms in zip(runs, rows, states, device, strict=True)
        ]
        return device + np.array(host)

    measured = np.array([1000 / (row.tokens_per_s_per_user or np.nan) for row in rows])
    return Observed(measured, table, counts, combine, sigma=0.05)


def prefill_rows(rows: Sequence[Row]) -> Observed:
    """Milliseconds of TTFT."""
    runs = [run_ops(row.workload) for row in rows]
    states = [row_state(row, run) for row, run in zip(rows, runs, strict=True)]
    states = [replace(state, prefill=True) for state in states]
    lists = [(run.prefill, state) for run, state in zip(runs, states, strict=True)]
    table, counts, launches = _count(lists)
    how = [
        PrefillRun.of(
            run,
            state,
            users=row.batch_size,
            prefill_len=row.prefill_len,
            data_parallel=row.data_parallel,
        )
        for row, run, state in zip(rows, runs, states, strict=True)
    ]

    dispatches = [Dispatch.of(run, state) for run, state in zip(runs, states, strict=True)]

    def combine(sums: np.ndarray, c: Constants) -> np.ndarray:
        device = sums + launches * _gaps(lists, c)
        totals = []
        facts = zip(rows, device, runs, dispatches, how, strict=True)
        for row, us, run, dispatch, driven in facts:
            host = driven.host_us(us, dispatch.us(c), c)
            own = (us * driven.share(c) + sum(host.values())) / run.prefill_users / 1000
            step = 1000 / row.tokens_per_s_per_user if row.tokens_per_s_per_user else 0.0
            ttft_ms = row.harness.ttft_ms
            totals.append(
                ttft_ms(own, row.batch_size, step, c, row.software, requests=row.requests)
            )
        return np.array(totals)

    measured = np.array([row.ttft_ms or np.nan for row in rows])
    return Observed(measured, table, counts, combine, sigma=0.08)


def op_rows(rows: Sequence[OpRow]) -> Observed:
    """Microseconds of single ops."""
    lists = [(OpList.of_records(row.records), row.state(Constants())) for row in rows]
    table, counts, _ = _count(lists)
    measured = np.array([row.us for row in rows])
    return Observed(measured, table, counts, lambda sums, _: sums, sigma=0.12)


def fit(
    phase: Observed,
    names: Sequence[str],
    start: Constants,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    near: Constants | None = None,
) -> Constants:
    """Constants that fit the chosen rows best; others stay as in `start`.

    The search begins at `near`, a fit to almost the same rows, and is short then; what it is pulled
    to is `start` all the same.

    Beyond its noise a row counts by its error, not by the square: what one odd machine or model
    published must not move all others.
    """
    chosen = np.arange(len(phase.measured)) if rows is None else np.asarray(rows)
    guess = np.log([getattr(start, name) for name in names])
    low = np.log([facts(name)["low"] for name in names]) - 1e-9
    high = np.log([facts(name)["high"] for name in names]) + 1e-9
    pull = np.array([TIGHT.get(name, LOOSE) for name in names])
    measured = np.log(phase.measured[chosen])

    def at(x: np.ndarray) -> Constants:
        return replace(start, **dict(zip(names, np.exp(x).tolist(), strict=True)))

    def errors(figures: np.ndarray) -> np.ndarray:
        return (np.log(figures[chosen]) - measured) / phase.sigma

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.concatenate([errors(phase.predict(at(x))), (x - guess) / pull])

    def slopes(x: np.ndarray) -> np.ndarray:
        here = at(x)
        times = phase.table.times(here)
        base = errors(phase.predict(here, times))
        jacobian = np.zeros((len(chosen) + len(names), len(names)))
        for i, name in enumerate(names):
            there = at(x + STEP * (np.arange(len(x)) == i))
            moved = phase.predict(there, phase.table.changed(times, there, name))
            jacobian[: len(chosen), i] = (errors(moved) - base) / STEP
            jacobian[len(chosen) + i, i] = 1 / pull[i]
        return jacobian

    begin = np.clip(np.log([getattr(near or start, name) for name in names]), low, high)
    found = least_squares(
        residuals, begin, jac=slopes, bounds=(low, high), loss="soft_l1", max_nfev=25, xtol=1e-5,
        ftol=1e-5,
    )  # fmt: skip
    return at(found.x)
