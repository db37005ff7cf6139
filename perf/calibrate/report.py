"""The report of a calibration: errors on unseen rows, baselines, noise, what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from perf.calibrate.fit import row_state
from perf.calibrate.judge import Data, Judged, half, leave_out
from perf.calibrate.published_rows import Row, twins
from perf.calibrate.sources import Sources, Table, mean_error
from perf.op_lists.kept import run_ops
from perf.predict.figures import PhaseTimes, decode_phase, prefill_phase
from perf.predict.host import PrefillRun


def line(name: str, errors: np.ndarray) -> str:
    """n, mean, median and largest absolute error in percent, and the mean signed one."""
    if not len(errors):
        return f"  {name:<28} {0:>4}"
    size = 100 * np.abs(errors)
    return (
        f"  {name:<28} {len(size):>4} {size.mean():>7.1f} {np.median(size):>7.1f} "
        f"{size.max():>7.1f} {100 * errors.mean():>+7.1f}"
    )


HEAD = f"  {'':<28} {'n':>4} {'mean':>7} {'median':>7} {'max':>7} {'signed':>7}   (percent)"


def report(data: Data, splits: Sequence[Judged]) -> str:
    """Everything, as text."""
    parts = [
        _sources(data, splits),
        _splits(data, splits),
        _by(data, splits, "device"),
        _by(data, splits, "family"),
        _left_out(data, "device"),
        _left_out(data, "family"),
        _baselines(data, splits),
        _noise(data),
        _single_ops(data, splits[0]),
        _worst(data, splits),
    ]
    return "\n\n".join(parts)


def _sources(data: Data, splits: Sequence[Judged]) -> str:
    """Whole documents left out, and rows that took no part in anything."""
    sources = Sources(Table(data.rows), data.op_start)
    other, kinds = sources.other, (("demos", False), ("servers", True))
    documents = np.concatenate([sources.first.document, other.document])
    fits = np.concatenate([sources.first.is_fit, other.is_fit])
    lines = ["Leave one source out", _SOURCES]
    for document in dict.fromkeys(documents[fits].tolist()):
        own = fits & (documents == document)
        lines.append(_source(document, {k: v[own] for k, v in sources.left_out.items()}))
    for name, serves in kinds:
        own = sources.chosen(serves=serves)
        lines.append(_source(f"all {name}", {k: v[own] for k, v in sources.left_out.items()}))
    constants = sources.shipped(splits[0].constants)
    lines += ["", "Kept aside: never fitted, nor used for intervals", _SOURCES]
    errors = other.errors(constants)
    for document in dict.fromkeys(other.document[~other.is_fit].tolist()):
        own = ~other.is_fit & (other.document == document)
        lines.append(_source(document, {k: v[own] for k, v in errors.items()}))
    for name, serves in kinds:
        own = ~other.is_fit & (other.serves == serves)
        lines.append(_source(f"all {name}", {k: v[own] for k, v in errors.items()}))
    lines += ["", "What 80 % intervals hold, percent of rows (and mean of sources)"]
    lines.append(f"  {'':<28} {'measured / predicted':>22} {'left out':>12} {'kept aside':>12}")
    for name, serves in kinds:
        for figure in ("decode", "ttft"):
            low, high = sources.ratios(figure, serves=serves)
            out = sources.coverage(figure, serves=serves)
            aside = sources.judged(figure, constants, serves=serves)
            lines.append(
                f"  {figure + ' of ' + name:<28} {low:>13.3f} to {high:.3f} "
                f"{_percent(out):>12} {_percent(aside):>12}"
            )
    return "\n".join(lines)


def _percent(held: tuple[float, float]) -> str:
    return f"{100 * held[0]:.0f} ({100 * held[1]:.0f})"


_SOURCES = f"  {'':<40} {'rows':>5} {'t/s/u':>7} {'TTFT':>7}   (percent, mean absolute)"


def _source(name: str, errors: dict[str, np.ndarray]) -> str:
    speed, ttft = (mean_error(errors[kind]) for kind in ("decode", "ttft"))
    return f"  {name:<40} {len(errors['decode']):>5} {speed:>7.1f} {ttft:>7.1f}"


def _splits(data: Data, splits: Sequence[Judged]) -> str:
    odd = len([row for row in data.rows if row.ttft_ms]) - len(data.ttft_rows)
    lines = [
        f"Rows not fitted, {len(splits)} halves ({len(data.rows)} rows of tokens/s/user, "
        f"{len(data.ttft_rows)} of TTFT; {odd} TTFTs of another harness or later withdrawn are "
        "left out; rows of one configuration stay in one half)",
        HEAD,
    ]
    for judged in splits:
        lines += [
            line(f"tokens/s/user, {judged.name}", judged.speed),
            line(f"TTFT, {judged.name}", judged.ttft),
        ]
    lines += [
        line("tokens/s/user, all", np.concatenate([s.speed for s in splits])),
        line("TTFT, all", np.concatenate([s.ttft for s in splits])),
    ]
    return "\n".join(lines)


def _by(data: Data, splits: Sequence[Judged], attribute: str) -> str:
    """Unseen rows of all splits by device or family."""
    lines = [f"Rows not fitted by {attribute}", HEAD]
    values = dict.fromkeys(getattr(row, attribute) for row in data.rows)
    for figure, rows_of, errors_of in (
        ("tokens/s/user", lambda s: s.speed_rows, lambda s: s.speed),
        ("TTFT", lambda s: s.ttft_rows, lambda s: s.ttft),
    ):
        for value in values:
            errors = np.concatenate(
                [
                    errors_of(s)[[getattr(data.rows[i], attribute) == value for i in rows_of(s)]]
                    for s in splits
                ]
            )
            lines.append(line(f"{figure}, {value}", errors))
    return "\n".join(lines)


def _left_out(data: Data, attribute: str) -> str:
    lines = [f"Leave one {attribute} out: fitted on all other rows", HEAD]
    for judged in leave_out(data, attribute):
        lines += [
            line(f"tokens/s/user, {judged.name}", judged.speed),
            line(f"TTFT, {judged.name}", judged.ttft),
        ]
    return "\n".join(lines)


def _phases(data: Data) -> tuple[list[PhaseTimes], list[PhaseTimes]]:
    """Sums of op times of every row, for their physical limits."""
    decode, prefill = [], []
    for row in data.rows:
        run = run_ops(row.workload)
        state = row_state(row, run)
        decode.append(decode_phase(run, state, data_parallel=row.data_parallel))
        prefill.append(prefill_phase(run, state, PrefillRun(1, False)))
    return decode, prefill


def _baselines(data: Data, splits: Sequence[Judged]) -> str:
    """Simpler models on the same unseen rows: what the mechanisms are worth."""
    decode, prefill = _phases(data)
    limits = {
        "tokens/s/user": np.array([phase.limit_ms for phase in decode]),
        "TTFT": np.array([prefill[i].limit_ms for i in data.ttft_rows]),
    }
    measured = {"tokens/s/user": data.decode.measured, "TTFT": data.prefill.measured}
    devices = {
        "tokens/s/user": np.array([row.device for row in data.rows]),
        "TTFT": np.array([data.rows[i].device for i in data.ttft_rows]),
    }
    lines = ["Baselines on the same rows", HEAD]
    for figure in limits:
        ratio = measured[figure] / limits[figure]
        for name, factor in _FACTORS.items():
            errors = []
            for n in range(len(splits)):
                seen = half(data.rows, n)
                seen = seen if figure == "tokens/s/user" else data.ttft(seen)
                time = limits[figure] * factor(ratio, devices[figure], seen)
                too_high = time / measured[figure]  # as the errors of the model itself are signed
                error = (too_high if figure == "TTFT" else 1 / too_high) - 1
                errors.append(error[~seen])
            lines.append(line(f"{figure}, {name}", np.concatenate(errors)))
    return "\n".join(lines)


def _by_device(ratio: np.ndarray, device: np.ndarray, seen: np.ndarray) -> np.ndarray:
    factors = np.full(len(ratio), np.median(ratio[seen]))
    for name in set(device.tolist()):
        known = seen & (device == name)
        if known.any():
            factors[device == name] = np.median(ratio[known])
    return factors


_FACTORS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "peak roofline": lambda ratio, device, seen: np.ones(len(ratio)),
    "one factor": lambda ratio, device, seen: np.full(len(ratio), np.median(ratio[seen])),
    "a factor per device": _by_device,
}


def _noise(data: Data) -> str:
    """How much the tables disagree with themselves."""
    pairs = twins(data.rows)
    speed = [(a.tokens_per_s_per_user, b.tokens_per_s_per_user) for a, b in pairs]
    ttft = [(a.ttft_ms, b.ttft_ms) for a, b in pairs]
    return "\n".join(
        [
            "Noise floor: the same configuration published twice",
            HEAD,
            line("tokens/s/user", _differences(speed)),
            line("TTFT", _differences(ttft)),
        ]
    )


def _differences(pairs: Iterable[tuple[float | None, float | None]]) -> np.ndarray:
    return np.array([b / a - 1 for a, b in pairs if a and b])


def _single_ops(data: Data, judged: Judged) -> str:
    """Published single-op timings; they are all fitted (a few constants to many timings)."""
    errors = data.op_errors(judged.constants)
    sizes = np.abs(errors)
    tables = np.array([row.isolated for row in data.ops])
    lines = [
        f"Single ops: {len(errors)} timings, median {100 * np.median(sizes):.1f} %, "
        f"{100 * (sizes <= 0.2).mean():.0f} % within 20 % ({len(data.not_ops)} lines of the table "
        "are host work or sums)",
        HEAD,
        line("collectives, matmuls in loops", errors[tables]),
        line("inside models", errors[~tables]),
    ]
    return "\n".join(lines)


def _worst(data: Data, splits: Sequence[Judged]) -> str:
    """Rows with the largest mean error when unseen."""
    lines = ["Worst rows when not fitted (mean signed error, percent)"]
    for figure, rows_of, errors_of in (
        ("tokens/s/user", lambda s: s.speed_rows, lambda s: s.speed),
        ("TTFT", lambda s: s.ttft_rows, lambda s: s.ttft),
    ):
        found: dict[int, list[float]] = {}
        for s in splits:
            for i, error in zip(rows_of(s), errors_of(s), strict=True):
                found.setdefault(int(i), []).append(float(error))
        means = sorted(found.items(), key=lambda item: -abs(np.mean(item[1])))[:8]
        lines += [f"  {figure:<14} {_name(data.rows[i])} {100 * np.mean(e):+.1f}" for i, e in means]
    return "\n".join(lines)


def _name(row: Row) -> str:
    return f"{row!s:<58}"
