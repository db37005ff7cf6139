"""The gates: what they catch, and that targets and constants are what their tables say."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from backends.device_specs import SPECS
from perf import gate, targets
from perf.calibrate import Data, half, judge
from perf.constants import as_json, load_constants
from perf.op_list import CountedOp
from perf.op_list_cache import run_ops
from perf.op_rows import collective
from perf.predict import job_for, predict_ops
from perf.published_rows import FIGURES
from perf.software import OWN

MODEL, DEVICE = "Llama-3.1-8B", "N300"


def entry(planted: bool = False) -> gate.Entry:
    job = job_for(MODEL, SPECS[DEVICE], software=OWN)
    run = run_ops(job)
    if planted:
        op = collective("all_gather", (1, 1, 32, 4096), "bf16", chips=2)
        extra = CountedOp(replace(op, scope="layers.0.attention"), 32)
        run = replace(run, decode=replace(run.decode, ops=(*run.decode.ops, extra)))
    found = predict_ops(run, job.spec, users=1, prefill_len=128, context=job.context)
    return gate.entry_of(run, job, found)


def test_a_planted_all_gather_fails_the_gate_and_is_named() -> None:
    recorded = entry().as_json()
    assert gate.compare("key", recorded, entry(), 0.03).status == "passed"
    verdict = gate.compare("key", recorded, entry(planted=True), 0.03)
    assert verdict.failed
    assert "attention all_gather" in verdict.message


def test_supported_configurations_are_as_fast_as_recorded() -> None:
    failures = gate.check(devices=("N300", "P150"), models=(MODEL, "Llama-3.2-1B"))
    assert not [verdict.message for verdict in failures]
    assert f"{MODEL} {DEVICE} batch-32" in targets.load()["predictions"]


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
    names = load_constants()
    again = as_json(judged.constants, {})
    for name, value in json.loads(again)["constants"].items():
        assert value["value"] == pytest.approx(getattr(names, name), rel=0.02), name
    assert abs(judged.speed).mean() <= 0.05
    assert abs(judged.ttft).mean() <= 0.085
    errors = abs(data.op_errors(judged.constants))
    assert (errors <= 0.2).mean() >= 0.8
