"""Figures follow their printed definitions, and records are whole lines whoever writes at once."""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from perf.metrics import measure
from perf.profiler import Profiler
from perf.record import BenchmarkRecord, append_record, current_command, read_records

RECORD = BenchmarkRecord(
    model="m", backend="emulator", device="N150", mesh_shape=(1, 1), data_parallel=1,
    batch_size=2, prefill_len=128, generated_tokens=5, optimizations="performance",
    provenance="host",
)  # fmt: skip


def test_figures_follow_their_definitions() -> None:
    profiler = Profiler()
    profiler.add("inference_prefill", 0.5)
    profiler.add("inference_prefill", 0.3)
    for seconds in (9.0, 0.1, 0.2, 0.1):
        profiler.add("inference_decode", seconds)
    metrics = measure(profiler, users=4, prefill_tokens=128)
    assert metrics.ttft_ms == pytest.approx(200)
    assert metrics.whole_ttft_ms == pytest.approx(800)
    assert metrics.prefill_tokens_per_s == pytest.approx(128 / 0.8)
    assert metrics.tokens_per_s_per_user == pytest.approx(3 / 0.4), "iteration 0 compiles"
    assert metrics.tokens_per_s == pytest.approx(4 * 3 / 0.4)
    assert metrics.decode_ms == pytest.approx(400 / 3)


def test_the_speed_at_the_128th_token_is_that_of_one_iteration() -> None:
    profiler = Profiler()
    for iteration in range(200):
        profiler.add("inference_decode", 0.5 if iteration == 127 else 0.1)
    assert measure(profiler, users=1, prefill_tokens=128).at_token == {128: pytest.approx(2.0)}


def test_a_phase_that_did_not_run_has_no_speed() -> None:
    metrics = measure(Profiler(), users=1, prefill_tokens=128)
    assert (metrics.ttft_ms, metrics.tokens_per_s_per_user, metrics.at_token) == (0, 0, {})


def append_many(path: Path) -> None:
    for _ in range(20):
        append_record(RECORD, path)


def test_records_written_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "generated" / "records.jsonl"
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(append_many, [path] * 4))
    records = read_records(path)
    assert len(records) == 80
    assert all(record == json.loads(json.dumps(records[0])) for record in records)
    assert records[0]["mesh_shape"] == [1, 1]


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/pytest/__main__.py", "demo/a.py", "-k", "a and b"])
    assert current_command() == "pytest demo/a.py -k 'a and b'"
