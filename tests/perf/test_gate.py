"""The gates: what they catch, and that targets and constants are what their tables say."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from functools import partial

import pytest

from backends.device_specs import SPECS
from perf import gate, own, report, targets
from perf.calibrate.judge import Data, half, judge
from perf.calibrate.op_rows import collective
from perf.calibrate.published_rows import FIGURES
from perf.cost.constants import as_json, fitted, load_constants
from perf.cost.software import OWN
from perf.op_lists.kept import run_ops
from perf.op_lists.record import CountedOp, RunOps, Workload
from perf.predict.figures import workload_for

MODEL, DEVICE = "Llama-3.1-8B", "N300"


def with_a_gather(run: RunOps) -> RunOps:
    """The run with one more all-gather in every layer."""
    op = collective("all_gather", (1, 1, 32, 4096), "bf16", chips=2)
    extra = CountedOp(replace(op, scope="layers.0.attention"), 32)
    return replace(run, decode=replace(run.decode, ops=(*run.decode.ops, extra)))


def test_a_planted_all_gather_fails_every_gate_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = workload_for(MODEL, SPECS[DEVICE], software=OWN)
    run = run_ops(workload)
    assert gate.check_modelled(run, workload).status == "passed"
    verdict = gate.check_modelled(with_a_gather(run), workload)
    assert verdict.failed
    assert f"{MODEL} {DEVICE} batch-1: tokens/s/user" in verdict.message
    assert "attention all_gather grew from" in verdict.message
    # the command that CI runs: predictions and op lists as text both tell
    monkeypatch.setattr(gate, "run_ops", lambda workload: with_a_gather(run_ops(workload)))
    monkeypatch.setattr(gate, "GOLDEN_RUNS", ((MODEL, DEVICE),))
    monkeypatch.setattr(gate, "check", partial(gate.check, (DEVICE,), (MODEL,)))
    assert gate.main([]) == 1
    printed = capsys.readouterr().out
    assert "attention all_gather grew from" in printed
    assert "\n+ 32 layers.*.attention all_gather" in printed


def test_a_published_row_that_ours_falls_behind_fails_the_gate_and_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = next(c for c in own.comparisons() if str(c.row).startswith("Llama-3.2-1B N300"))
    assert not fast.misses
    assert not gate.check_own([fast])
    monkeypatch.setattr(own, "load_rows", lambda: [fast.row])
    assert report.main(["--own"]) == 0
    assert "1 of 1 rows reach" in capsys.readouterr().out
    predict = own.predict

    def slower(*workload: object, **options: object) -> object:
        found = predict(*workload, **options)  # type: ignore[arg-type]
        return replace(found, tokens_per_s_per_user=0.5 * found.tokens_per_s_per_user)

    monkeypatch.setattr(own, "predict", slower)
    (verdict,) = gate.check_own(list(own.comparisons()))
    # recorded figures are rounded
    assert re.fullmatch(r".*: tokens/s/user (99|100)\.\d % slower than recorded", verdict.message)
    assert verdict.message.startswith(str(fast.row))
    assert report.main(["--own"]) == 1
    assert "too slow" in capsys.readouterr().out


def test_other_configurations_are_not_held_against_a_record() -> None:
    workload = workload_for(MODEL, SPECS[DEVICE], software=OWN)
    run = with_a_gather(run_ops(workload))
    for other in (
        replace(workload, optimizations="accuracy"), replace(workload, prefill_len=1024),
        replace(workload, data_parallel=2), replace(workload, model="nobody"),
    ):  # fmt: skip
        assert gate.check_modelled(run, other).status == "none"


def test_supported_configurations_are_as_fast_as_recorded() -> None:
    failures = gate.check(devices=("N300", "P150"), models=(MODEL, "Llama-3.2-1B"))
    assert not [verdict.message for verdict in failures]
    assert f"{MODEL} {DEVICE} batch-32" in targets.load()["predictions"]


def test_a_cheap_extra_op_that_only_one_model_takes_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An op so cheap that no figure shows it, on a model without a golden op list of its own."""
    model = "Phi-3.5-mini"
    assert (model, DEVICE) not in gate.GOLDEN_RUNS
    assert not gate.check((DEVICE,), (model,))
    plain = gate.run_ops

    def with_a_cheap_op(workload: Workload) -> RunOps:
        run = plain(workload)
        cheap = next(op for op in run.decode.ops if op.record.name == "add")
        extra = replace(cheap, count=1, record=replace(cheap.record, scope="layers.0.mlp"))
        return replace(run, decode=replace(run.decode, ops=(*run.decode.ops, extra)))

    monkeypatch.setattr(gate, "run_ops", with_a_cheap_op)
    messages = [verdict.message for verdict in gate.check((DEVICE,), (model,))]
    assert len(messages) == 2
    assert all(re.search(r"calls changed .*decode mlp add \d+ -> \d+", m) for m in messages)


def test_a_configuration_that_no_longer_runs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "predictions", lambda devices, models: iter(()))
    messages = [verdict.message for verdict in gate.check((DEVICE,), (MODEL,))]
    assert [message.split(": ")[0] for message in messages] == [
        f"{MODEL} {DEVICE} batch-1", f"{MODEL} {DEVICE} batch-32",
    ]  # fmt: skip


def test_measured_figures_fail_when_slow_and_ask_for_more_when_fast() -> None:
    target = targets.find_target(
        MODEL, "N150", batch_size=1, prefill_len=128, optimizations="performance"
    )
    assert target is not None and target.tokens_per_s_per_user == 27.8
    for speed, ttft, status in (
        (27.8, 107, "passed"), (25.0, 107, "failed"), (27.8, 120, "failed"), (35.0, 107, "raise"),
    ):  # fmt: skip
        verdict = gate.check_measured(target, tokens_per_s_per_user=speed, ttft_ms=ttft)
        assert verdict.status == status


def test_targets_hold_every_published_row() -> None:
    with FIGURES.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    found = targets.published()
    assert len(found) == len(lines) == 107
    assert sum(t.tokens_per_s_per_user is not None for t in found) == 107
    assert sum(t.ttft_ms is not None for t in found) == 93
    with pytest.raises(ValueError, match="listed are"):
        targets.accuracy_target("nobody", "N150", "performance")


def test_calibration_reproduces_the_constants_and_keeps_its_promise() -> None:
    data = Data.load()
    judged = judge(data, "shipped", half(data.rows, 0))
    written = load_constants()
    again = json.loads(as_json(judged.constants, {}))["constants"]
    for name in {name for kind in ("ops", "decode", "prefill") for name in fitted(kind)}:
        assert again[name]["value"] == pytest.approx(getattr(written, name), rel=0.02), name
    assert abs(judged.speed).mean() <= 0.05
    assert abs(judged.ttft).mean() <= 0.085
    errors = abs(data.op_errors(judged.constants))
    assert (errors <= 0.2).mean() >= 0.8
