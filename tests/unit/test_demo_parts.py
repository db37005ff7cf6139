"""The demos' own arithmetic: windows of stress runs, speed bands, checks of texts."""

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from backends import silicon
from backends.device_specs import SPECS
from demo import decode_run, report
from demo.cases import DECODE_CASES, GALAXY_CASES, SIMPLE_CASES, PageParams
from demo.decode_run import DecodeLog, check_band
from demo.flow import OpLists
from demo.modelled import Modelled, modelled
from demo.pcc_check import pcc
from demo.progress import TextStream
from demo.records import figures_of, judge, published_target
from demo.report import needles_found, users_with_garbage
from perf.cost.software import OWN
from perf.gate import Verdict
from perf.metrics import FIRST_PREFILL, measure
from perf.op_lists.record import record_run
from perf.predict.figures import predict, workload_for
from perf.profiler import Profiler
from runtime.dry_run import report as dry_run_report
from runtime.find import device_of
from runtime.prompts import Prompt
from runtime.settings import Settings
from runtime.teacher_forcing import FreeRun, loop_length
from runtime.tokenizer import Tokenizer, stand_in_tokenizer

ROOT = Path(__file__).resolve().parents[2]
STRESS = next(case for case in DECODE_CASES if case.id == "stress-test")
FULL = next(case for case in DECODE_CASES if case.id == "full")


def test_the_pages_bound_a_stress_run_and_all_users_end_together() -> None:
    case = replace(STRESS, page_params=PageParams(32, 64), batch_size=32)
    prompts = [[1] * (20 - user % 3) for user in range(32)]
    requests = decode_run.requests_of(case, prompts)
    assert {request.cache_length for request in requests} == {64}
    assert len({len(request.prompt) + request.max_new_tokens for request in requests}) == 1
    with pytest.raises(ValueError, match="give 64: raise them, generate less, or use --stress"):
        decode_run.requests_of(replace(case, stress_test=False), prompts)


def test_a_log_of_any_length_is_bounded() -> None:
    log = DecodeLog()
    log.iteration_ms.extend([1.0] * 500_000)
    assert log.iteration_ms.itemsize * len(log.iteration_ms) < 4 * 2**20


@pytest.mark.parametrize(
    ("speeds", "outcome"),
    [
        ([70.0] * 199, None),
        ([70.0] * 185 + [60.0] * 14, None),
        ([70.0] * 150 + [60.0] * 49, "49 of 199 iterations .* too slow"),
        ([80.0] * 199, "199 of 199 iterations .* too fast"),
        ([70.0] * 199 + [1.0] * 1000, None),
    ],
)
def test_a_band_fails_on_both_sides_but_forgives_a_tenth(
    speeds: Sequence[float], outcome: str | None
) -> None:
    if outcome is None:
        check_band(speeds, (68, 73))
        return
    with pytest.raises(pytest.fail.Exception, match=outcome):
        check_band(speeds, (68, 73))


def test_a_special_token_before_the_end_is_garbage() -> None:
    tokenizer = Tokenizer(stand_in_tokenizer(50).codec, eos_ids=[2], special_ids=[1, 2])
    assert users_with_garbage([[5, 6, 2], [5, 1, 2], [5, 2, 1]], tokenizer) == [1]


def test_a_hidden_fact_is_found_in_the_answer() -> None:
    tokenizer = stand_in_tokenizer(1000)
    answers = [tokenizer.encode("It is 4417."), tokenizer.encode("It is 12."), []]
    prompts = [Prompt("?", "4417"), Prompt("?", "4417"), Prompt("?")]
    assert needles_found(prompts, answers, tokenizer) == (1, 2)


def test_pcc_is_the_correlation_of_all_elements() -> None:
    a = torch.randn(4, 5)
    assert pcc(a, a * 3 + 1) == pytest.approx(1)
    assert pcc(a, -a) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("count", "arch", "device"),
    [(1, "wormhole_b0", "N150"), (8, "wormhole_b0", "T3K"), (32, "wormhole_b0", "TG")],
)
def test_hardware_without_a_choice_is_used_whole(
    count: int, arch: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = SimpleNamespace(GetNumAvailableDevices=lambda: count, get_arch_name=lambda: arch)
    monkeypatch.setattr(silicon, "load", lambda: wheel)
    assert device_of(Settings(backend="silicon"), "TG") == device
    assert device_of(Settings(backend="silicon", device="N300"), "TG") == "N300"
    assert device_of(Settings(backend="emulator"), "TG") == "TG"


def test_an_unknown_number_of_chips_asks_for_mesh_device(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = SimpleNamespace(GetNumAvailableDevices=lambda: 3, get_arch_name=lambda: "wormhole_b0")
    monkeypatch.setattr(silicon, "load", lambda: wheel)
    with pytest.raises(ValueError, match="3 wormhole_b0 chips.*set MESH_DEVICE"):
        device_of(Settings(backend="silicon"), "TG")


def session_of(model: str, device: str) -> Any:
    return SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(name=model)), device=device)


def test_a_run_finds_its_published_figures_only_if_the_model_is_whole() -> None:
    session, case = session_of("Llama-3.2-1B", "N150"), SIMPLE_CASES[0]
    found = figures_of(published_target(session, case, 128))
    assert found == {"tokens_per_s_per_user": 84.5, "ttft_ms": 26.0, "top1": 88.0, "top5": 98.0}
    assert published_target(session, replace(case, num_layers=2), 128) is None
    assert published_target(session, replace(case, weights="random"), 128) is None
    assert published_target(session_of("SmolLM2-135M-Instruct", "N150"), case, 128) is None


def test_the_galaxy_demo_has_figures_of_its_own() -> None:
    case = next(case for case in GALAXY_CASES if case.id == "batch-1")
    target = published_target(session_of("Llama-3.3-70B", "TG"), case, 128)
    assert target is not None
    assert target.ttft_ms == pytest.approx(59.64)


@pytest.mark.parametrize(
    ("speed", "status"), [(84.5, "passed"), (60.0, "failed"), (120.0, "raise")]
)
def test_measured_figures_are_held_against_published_ones_and_modelled_against_recorded(
    speed: float, status: str
) -> None:
    session = session_of("Llama-3.2-1B", "N150")
    target = published_target(session, SIMPLE_CASES[0], 128)
    profiler = Profiler()
    profiler.add("inference_prefill", 0.026)
    for _ in range(3):
        profiler.add("inference_decode", 1 / speed)
    metrics = measure(profiler, users=1, prefill_tokens=128)
    session.settings = Settings(backend="silicon")
    modelled = Modelled(SimpleNamespace(), Verdict("failed", "an op too many"))  # type: ignore[arg-type]
    verdict = judge(session, target, metrics, modelled)
    assert verdict is not None
    assert verdict.status == status
    session.settings = Settings(backend="emulator")
    assert judge(session, target, metrics, None) is None
    assert judge(session, target, metrics, modelled) is modelled.verdict


@pytest.mark.parametrize("sampling", [True, False])
def test_a_demo_predicts_what_the_predictor_answers_to_the_same_question(sampling: bool) -> None:
    job = replace(
        workload_for("default", SPECS["N150"], software=OWN, generated=8), device_sampling=sampling
    )
    recorded = record_run(job)
    # the calls of the very run, as a demo notes them
    ops = OpLists(*([op.record for op in part.ops for _ in range(op.count)]
                    for part in (recorded.prefill, recorded.decode)))  # fmt: skip
    session = session_of("SmolLM2-135M-Instruct", "N150")
    session.case = replace(SIMPLE_CASES[0], max_generated_tokens=8)
    engine = SimpleNamespace(vocab_size=49152)
    session.loaded = SimpleNamespace(engines=[engine], plan=SimpleNamespace(spec=SPECS["N150"]))
    session.generator = SimpleNamespace(sample_on_device=True)  # as asked for, not as it came
    session.settings = Settings(backend="emulator")
    found = modelled(session, ops, prefill_len=128)
    assert found is not None
    theirs, ours = predict(job, software=OWN), found.prediction
    assert ours.assumes == theirs.assumes
    assert ours.ttft_ms == pytest.approx(theirs.ttft_ms, rel=1e-3)
    assert ours.tokens_per_s_per_user == pytest.approx(theirs.tokens_per_s_per_user, rel=1e-3)


@functools.cache
def real_tokenizer() -> Tokenizer:
    from models.checkpoints.default_model import default_model_path
    from runtime.tokenizer_files import load_tokenizer

    return load_tokenizer(default_model_path())


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40))
def test_a_text_that_is_streamed_is_the_text(text: str) -> None:
    tokenizer = real_tokenizer()
    tokens = tokenizer.encode("Hi " + text)
    stream = TextStream(tokenizer)
    lines = [line for token in tokens for line in stream.add(token)]
    assert "\n".join([*lines, stream.rest()]) == tokenizer.decode(tokens)


def test_a_text_that_goes_round_in_circles_is_called_so() -> None:
    assert loop_length([1, 2, 3, 4, 5, 6, 7, 8] * 2 + [9, 8, 7] * 6) == 3
    assert loop_length(list(range(64))) == loop_length([1, 2] * 2 + list(range(60))) == 0
    run = FreeRun(-1.0, -1.0, 1, 0, 64, loop=3)
    assert run.passed
    assert str(run).startswith("likely, but it ends by repeating 3 tokens")


def test_the_dry_run_says_which_users_had_which_context() -> None:
    run = {"batch_size": 32, "max_seq_len": 131072, "num_blocks": 33408, "block_size": 32}
    checked = dry_run_report._checked(run)
    assert checked == "32 users of 33408 tokens at once (any one of them up to 131072)"
    run |= {"batch_size": 1, "num_blocks": 4096}
    assert dry_run_report._checked(run) == "1 user of 131072 tokens"


def test_a_demo_of_which_nothing_ran_says_why_and_is_no_success() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               "demo/simple_text_demo.py", "-k", "performance and long-context"]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "HF_MODEL")}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "skipped: long-context needs a context of" in found.stdout


def test_a_prefill_that_was_not_run_before_is_not_called_compiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    profiler = Profiler()
    profiler.add("inference_prefill", 0.5)
    metrics = measure(profiler, users=1, prefill_tokens=9)
    said: list[str] = []
    sink = logger.add(said.append, format="{message}")
    report.print_summary("run", metrics, None, measured_on="host", device="N150")
    logger.remove(sink)
    text = "".join(said)
    assert "not run apart" in text
    assert "compiled prefill" not in text
    assert FIRST_PREFILL in text
