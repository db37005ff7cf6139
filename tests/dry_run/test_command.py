"""The command line: what it answers, how it ends, and what it survives."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

from backends.dry_run import environment
from backends.dry_run.errors import DryRunError, words_of
from backends.dry_run.worker import Outcome, run_module
from runtime.dry_run import __main__ as command
from runtime.dry_run import worker

SMALL = ["--model", "Llama-3.2-1B", "--device", "N300", "--layers", "1", "--batch_size", "32"]


def test_json_tells_ops_programs_memory_and_what_would_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main([*SMALL, "--max_seq_len", "8192", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (run,) = report["runs"]
    names = [phase["name"] for phase in run["phases"]]
    assert names == [
        "prefill 128",
        "prefill 8191",
        "prefill 256 after 128 cached",
        "prefill 32 x 128",
        "decode",
        "decode and sample",
    ]
    for phase in run["phases"]:
        assert 10 < phase["ops_per_layer"] < phase["ops"]
        assert 0 < phase["l1_peak"] < 1_499_136
    dram = run["dram"]
    assert dram["weights"] + dram["cache"] + dram["rest"] == dram["peak"] < dram["total"]
    # 2 x 8 heads x 64 x 8192 x 32 bytes of keys and values over two chips, 1088 bytes a tile
    assert dram["cache"] == 2 * 8 * 64 * 8192 * 32 // 2 * 1088 // 1024
    assert run["fits"]["largest_batch_at_max_seq_len"] == 32
    assert run["fits"]["largest_context_at_batch"]["1"] == 131_072


def test_a_model_that_cannot_fit_is_refused_with_the_numbers_before_it_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--model", "Llama-3.1-70B", "--device", "N150"]) == 2
    answer = capsys.readouterr().out
    assert answer.startswith("REFUSED Llama-3.1-70B on N150: Llama-3.1-70B does not fit N150")
    assert "GiB of weights" in answer
    assert answer.count("\n") == 1


def test_the_table_ends_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*SMALL, "--max_seq_len", "1024", "--phase", "decode"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("batch 32, context 1024, 1 layers, mesh 1x2")
    assert lines[-1].startswith("PASS Llama-3.2-1B on N300")


def test_a_context_that_ends_within_a_bucket_passes() -> None:
    assert command.main([*SMALL, "--max_seq_len", "300", "--phase", "prefill"]) == 0


def test_a_crash_of_the_wheel_is_reported_with_its_signal_and_our_line() -> None:
    outcome = run_module("tests.dry_run.misbehave", ["crash"], timeout_s=60)
    assert outcome.problem is not None
    assert outcome.problem.startswith("the process ended by SIGSEGV at tests/dry_run/misbehave.py:")


def test_a_worker_that_raises_is_reported_in_its_own_words() -> None:
    outcome = run_module("tests.dry_run.misbehave", ["raise"], timeout_s=60)
    assert outcome.problem == "ValueError: this is why"


def test_a_worker_that_hangs_is_ended() -> None:
    outcome = run_module("tests.dry_run.misbehave", ["hang"], timeout_s=1)
    assert outcome.timed_out
    assert outcome.problem == "no answer within 1 s"


def test_a_crash_costs_only_its_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes_at_the_second(module: str, arguments: list[str], *, timeout_s: float) -> Outcome:
        checks, reports = json.loads(arguments[1]), Path(arguments[3])
        fine = list(itertools.takewhile(lambda check: check["model"] != "bad", checks))
        reports.write_text("\n".join(json.dumps(check | {"status": "pass"}) for check in fine))
        return Outcome("", "", None if fine == checks else "it crashed")

    monkeypatch.setattr(worker, "run_module", crashes_at_the_second)
    checks = [{"model": name, "device": "N150"} for name in ("good", "bad", "fine", "well")]
    reports = worker.run_checks(checks)
    assert [report["model"] for report in reports] == ["good", "bad", "fine", "well"]
    assert [report["status"] for report in reports] == ["pass", "crash", "pass", "pass"]


def test_a_heap_that_ends_behind_a_list_of_cores_ends_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")  # grows by what is missing, so it often does
    options = {"layers": 1, "batch_sizes": [32], "max_seq_len": 1024, "phase": "decode"}
    (report,) = worker.run_checks([{"model": "Llama-3.3-70B", "device": "TG", **options}])
    assert report["status"] == "pass"


def test_another_python_is_told_which_ones_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    assert "needs Python 3.10 or 3.12" in (environment.unavailable() or "")


def test_a_refusal_is_one_line_with_op_scope_and_place() -> None:
    fatal = "TT_FATAL @ /project/a/b.cpp:12: x.is_sharded()\ninfo:\nInput must\nbe sharded\n"
    words = words_of(RuntimeError(fatal), {})
    error = DryRunError("linear", words, scope="layers.3.mlp", where="models/layers/mlp.py:51")
    assert str(error) == (
        "ttnn.linear in layers.3.mlp at models/layers/mlp.py:51: "
        "Input must be sharded (x.is_sharded(), b.cpp:12)"
    )


def test_a_wrong_keyword_and_an_inexact_float_are_named() -> None:
    text = (
        "\nttnn.f(): incompatible function arguments.\n\nCalled with:\n  f(ttnn.Tensor, scale=0.1)"
        "\n\nAvailable signatures:\n  f(a: ttnn.Tensor, *, scale: float)"
    )
    assert "scale must be exact in float32" in words_of(TypeError(text), {"scale": 0.1})
    assert words_of(TypeError(text), {"size": 1}).startswith("there is no parameter size")
