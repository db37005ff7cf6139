"""Gates on speed: measured figures against published ones, modelled figures against recorded ones.

    python -m perf.gate             fails if a supported configuration got over 3 % slower
    python -m perf.gate --record    accepts what is: new predictions and golden op lists

On silicon `check_measured` judges a run's figures. Without hardware, every supported (model,
device, case) is predicted from its op list and held against the prediction recorded in
targets.json; the op that grew is named. So are calls that came or went (golden/counts.json), and
golden op lists (golden/*.txt) show a change whole.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.command import run
from backends.device_specs import SPECS
from models.registry import model_names
from perf import targets, vision
from perf.cost.constants import load_constants, round_to
from perf.cost.price import op_time
from perf.cost.software import OWN
from perf.cost.units import Situation
from perf.op_lists.kept import run_ops
from perf.op_lists.record import OpList, RunOps, Workload
from perf.op_lists.text import text_of_run
from perf.own import Comparison, comparisons
from perf.predict.figures import launched, predict_ops, workload_for

DEVICES = ("N150", "N300", "T3K", "TG", "P100", "P150")
CASES = {"batch-1": (1, 128), "batch-32": (32, 128)}
IMAGE_CASE = "batch-1 image"
GOLDEN = Path(__file__).with_name("golden")
COUNTS = GOLDEN / "counts.json"
GOLDEN_RUNS = (
    ("Llama-3.1-8B", "N150"), ("Llama-3.1-8B", "N300"), ("Llama-3.1-8B", "T3K"),
    ("Llama-3.1-8B", "P150"), ("Llama-3.1-70B", "TG"), ("Qwen3-8B", "N300"),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a gate says: passed, failed, raise (the target is too easy), or none."""

    status: str
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.status == "failed"


@dataclass(frozen=True)
class Entry:
    """A prediction as it is recorded: figures, and milliseconds by op."""

    tokens_per_s_per_user: float
    ttft_ms: float
    decode: Mapping[str, float]
    prefill: Mapping[str, float]
    counts: Mapping[str, Mapping[str, int]]  # calls by phase, part of the model and op

    def as_json(self) -> dict[str, Any]:
        """Rounded, and without ops too short to matter."""
        return {
            "tokens_per_s_per_user": round_to(self.tokens_per_s_per_user, 4),
            "ttft_ms": round_to(self.ttft_ms, 4),
            "decode": _largest(self.decode),
            "prefill": _largest(self.prefill),
        }


def _largest(times: Mapping[str, float]) -> dict[str, float]:
    """Rounded times of the ops that take at least half a percent."""
    least = 0.005 * sum(times.values())
    return {name: round_to(ms) for name, ms in times.items() if ms >= least}


def check_measured(
    target: targets.Target | None, *, tokens_per_s_per_user: float | None, ttft_ms: float | None
) -> Verdict:
    """Figures of silicon against published ones: too slow fails, far too fast asks for more."""
    if target is None:
        return Verdict("none", "no published figure for this configuration")
    allowed = targets.tolerances()
    slow, fast = [], []
    speeds = (
        ("tokens/s/user", tokens_per_s_per_user, target.tokens_per_s_per_user, 1),
        ("TTFT ms", ttft_ms, target.ttft_ms, -1),
    )
    for name, found, expected, sign in speeds:
        if not found or not expected:
            continue
        faster = (found / expected) ** sign - 1
        line = f"{name} {found:.1f}, published {expected:.1f}"
        if faster < -allowed["slower"]:
            slow.append(f"{line}: {-100 * faster:.0f} % too slow")
        elif faster > allowed["faster"]:
            fast.append(f"{line}: {100 * faster:.0f} % faster, raise the target")
    if slow:
        return Verdict("failed", "; ".join(slow))
    return Verdict("raise", "; ".join(fast)) if fast else Verdict("passed")


def check_modelled(run: RunOps, workload: Workload) -> Verdict:
    """Ops that ran against the prediction recorded for their configuration, at its context."""
    shape = (workload.batch_size, workload.prefill_len)
    case = next((name for name, recorded in CASES.items() if recorded == shape), "")
    case += " image" * (workload.images > 0)
    key = f"{workload.model} {workload.spec.name} {case}"
    kept = targets.load()["predictions"].get(key)
    if kept is None or (workload.optimizations, workload.data_parallel) != ("performance", 1):
        return Verdict("none", "no recorded prediction for this configuration")
    return compare(key, kept, entry_of(run, workload), targets.tolerances()["grown"])


def part_of(scope: str) -> str:
    """The part of the model; a tower's and a looking layer's are not the text's of that name."""
    owner, _, part = scope.rpartition(".")
    owner = owner.partition(".")[0]
    return f"{owner} {part}" if owner in ("vision", "cross_layers") else part or "step"


def op_counts(ops: OpList) -> dict[str, int]:
    """Calls by part of the model and op."""
    found: dict[str, int] = {}
    for op in ops.ops:
        name = f"{part_of(op.record.scope)} {op.record.name}"
        found[name] = found.get(name, 0) + op.count
    return found


def op_times(ops: OpList, state: Situation) -> dict[str, float]:
    """Milliseconds by part of the model and op."""
    found: dict[str, float] = {}
    for op in launched(ops):
        name = f"{part_of(op.record.scope)} {op.record.name}"
        found[name] = found.get(name, 0.0) + op.count * op_time(op.record, state).us / 1000
    return found


def entry_of(run: RunOps, workload: Workload) -> Entry:
    """What is recorded of the op lists of a workload."""
    found = predict_ops(
        run,
        workload.spec,
        users=workload.batch_size,
        prefill_len=workload.prefill_len,
        context=workload.context,
    )
    grid = min(run.mesh_shape) > 1
    state = Situation(
        run.spec(workload.spec), load_constants(), OWN, workload.context, workload.batch_size, grid
    )
    return Entry(
        found.tokens_per_s_per_user,
        found.ttft_ms,
        op_times(run.decode, state),
        op_times(run.prefill, state),
        {"decode": op_counts(run.decode), "prefill": op_counts(run.prefill)},
    )


def compare(key: str, recorded: Mapping[str, Any], now: Entry, allowed: float) -> Verdict:
    """A prediction against its record; the op that grew most is named."""
    complaints = []
    figures = (
        ("tokens/s/user", recorded["tokens_per_s_per_user"] / now.tokens_per_s_per_user, "decode"),
        ("TTFT", now.ttft_ms / recorded["ttft_ms"], "prefill"),
    )
    for name, ratio, phase in figures:
        if ratio <= 1 + allowed:
            continue
        before, after = recorded[phase], getattr(now, phase)
        grown = {op: ms - before.get(op, 0.0) for op, ms in after.items()}
        line = f"{name} {100 * (ratio - 1):.1f} % slower"
        if grown:
            op = max(grown, key=lambda candidate: grown[candidate])
            line += f": {op} grew from {before.get(op, 0.0):.3f} to {after[op]:.3f} ms"
        complaints.append(line)
    return (
        Verdict("failed", f"{key}: " + "; ".join(complaints)) if complaints else Verdict("passed")
    )


def compare_counts(key: str, recorded: Mapping[str, Any], now: Entry) -> Verdict:
    """Calls of every op against their record: no op more, none less, on any configuration."""
    changes = [
        f"{phase} {name} {before.get(name, 0)} -> {after.get(name, 0)}"
        for phase, after in now.counts.items()
        for before in (recorded.get(phase, {}),)
        for name in sorted({*before, *after})
        if before.get(name, 0) != after.get(name, 0)
    ]
    message = f"{key}: calls changed (accept with --record): " + "; ".join(changes)
    return Verdict("failed", message) if changes else Verdict("passed")


def load_counts() -> dict[str, Any]:
    """Recorded calls of every supported configuration."""
    kept = json.loads(COUNTS.read_text(encoding="utf-8"))
    return {
        key: {phase: kept["lists"][i] for phase, i in numbers.items()}
        for key, numbers in kept["runs"].items()
    }


def save_counts(entries: Mapping[str, Entry]) -> None:
    """Equal lists once, one a line."""
    lists: dict[str, int] = {}

    def number(counts: Mapping[str, int]) -> int:
        return lists.setdefault(json.dumps(counts), len(lists))

    runs = {
        key: {phase: number(counts) for phase, counts in entry.counts.items()}
        for key, entry in sorted(entries.items())
    }
    named = ",\n".join(f"{json.dumps(key)}: {json.dumps(run)}" for key, run in runs.items())
    text = '{"lists": [\n' + ",\n".join(lists) + '\n],\n"runs": {\n' + named + "\n}}\n"
    COUNTS.write_text(text, encoding="utf-8")


def workloads(
    devices: Sequence[str] = DEVICES, models: Sequence[str] = ()
) -> Iterator[tuple[str, Workload]]:
    """Every supported (model, device, case); what does not fit a device is left out later."""
    for model in models or model_names():
        for device in devices:
            for case, (batch, length) in CASES.items():
                workload = workload_for(
                    model, SPECS[device], software=OWN, batch_size=batch, prefill_len=length
                )
                yield f"{model} {device} {case}", workload
    for model, device in vision.RUNS:
        if device in devices and (not models or model in models):
            yield f"{model} {device} {IMAGE_CASE}", vision.vision_job(model, device)


def predictions(
    devices: Sequence[str] = DEVICES, models: Sequence[str] = ()
) -> Iterator[tuple[str, Entry]]:
    """Predictions of all that fits."""
    for key, workload in workloads(devices, models):
        try:
            run = run_ops(workload)
        except ValueError:  # does not fit, or has too few heads
            continue
        yield key, entry_of(run, workload)


def golden_texts() -> Iterator[tuple[Path, str]]:
    """The op lists that are kept as text."""
    for model, device in GOLDEN_RUNS:
        workload = workload_for(model, SPECS[device], software=OWN, batch_size=32)
        yield GOLDEN / f"{model}-{device}.txt", text_of_run(run_ops(workload))


def golden_diffs() -> list[str]:
    """Changes of the golden op lists, as unified diffs."""
    diffs = []
    for path, text in golden_texts():
        kept = path.read_text(encoding="utf-8") if path.exists() else ""
        diff = difflib.unified_diff(
            kept.splitlines(), text.splitlines(), path.name, "now", lineterm="", n=1
        )
        diffs.append("\n".join(diff))
    return [diff for diff in diffs if diff]


def check(devices: Sequence[str] = DEVICES, models: Sequence[str] = ()) -> list[Verdict]:
    """Failures among all supported configurations, those that came or went included."""
    kept, allowed = targets.load()["predictions"], targets.tolerances()["grown"]
    found, counts = dict(predictions(devices, models)), load_counts()
    verdicts = []
    for key, _ in workloads(devices, models):
        if key in kept and key in found:
            verdicts.append(compare(key, kept[key], found[key], allowed))
            verdicts.append(compare_counts(key, counts.get(key, {}), found[key]))
        elif key in kept:
            verdicts.append(Verdict("failed", f"{key}: ran when it was recorded, is refused now"))
        elif key in found:
            verdicts.append(Verdict("failed", f"{key}: runs, but was never recorded"))
    return [verdict for verdict in verdicts if verdict.failed]


def check_own(found: Sequence[Comparison]) -> list[Verdict]:
    """Published rows for which our own op lists are predicted to be slower than recorded."""
    kept, allowed = targets.load()["own"], targets.tolerances()["grown"]
    verdicts = []
    for one in found:
        before = kept.get(one.key)
        if before is None:
            verdicts.append(Verdict("failed", f"{one.key}: was never recorded"))
            continue
        slower = before["tokens_per_s_per_user"] / one.own.tokens_per_s_per_user - 1
        later = one.own.ttft_ms / before["ttft_ms"] - 1
        for name, grown in (("tokens/s/user", slower), ("TTFT", later)):
            if grown > allowed:
                verdicts.append(
                    Verdict("failed", f"{one.key}: {name} {100 * grown:.1f} % slower than recorded")
                )
    return verdicts


def record() -> int:
    """Write predictions and golden op lists; how many predictions there are."""
    entries = dict(predictions())
    found = {key: entry.as_json() for key, entry in entries.items()}
    own = {one.key: one.as_json() for one in comparisons()}
    targets.save(targets.load() | {"predictions": found, "own": own})
    GOLDEN.mkdir(exist_ok=True)
    save_counts(entries)
    for path, text in golden_texts():
        path.write_text(text, encoding="utf-8")
    return len(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing got slower; 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.gate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--record", action="store_true", help="accept the present predictions")
    options = parser.parse_args(arguments)
    if options.record:
        print(f"recorded {record()} predictions and {len(GOLDEN_RUNS)} op lists")
        return 0
    failures = check()
    failures += check_own(list(comparisons()))
    for verdict in failures:
        print(verdict.message)
    diffs = golden_diffs()
    for diff in diffs:
        print(diff)
    if diffs:
        print("golden op lists changed (accept with python -m perf.gate --record)")
    if failures or diffs:
        return 1
    recorded, grown = len(targets.load()["predictions"]), targets.tolerances()["grown"]
    print(
        f"{recorded} predictions at most {100 * grown:.0f} % slower than recorded, as many calls, "
        f"{len(GOLDEN_RUNS)} golden op lists unchanged"
    )
    return 0


if __name__ == "__main__":
    run(main, "perf.gate")
