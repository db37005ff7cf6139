"""lt: jobs that fail, hang or leave children; its screen at any size; the Pareto front."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt import export, headless, pareto, results, search
from lt.__main__ import main
from lt.commands import COMMANDS, Plan, plan
from lt.jobs import JobQueue, Status
from lt.pareto import Point
from models.precision import ModelPrecision
from models.registry import load_config

RECORD = {
    "device": "N150", "tokens_per_s_per_user": 12.5, "ttft_ms": 40.0, "top1": 90.0, "top5": 99.0,
    "provenance": "measured",
}  # fmt: skip


def script(code: str, name: str = "job", *, setting: str = "") -> Plan:
    """A job that runs Python code."""
    return Plan(name, "default", "N150", ("-c", code), (), setting)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    jobs = JobQueue(folder=tmp_path / "lt", timeout_s=60)
    yield jobs
    jobs.close()


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- jobs


def test_a_failing_and_a_hanging_job_do_not_stop_the_others(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt.jobs.GRACE_S", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
    failing = script("print('one'); raise SystemExit('error: no such thing')")
    failed, hanging, last = queue.add([failing, script(deaf), script("print('fine')")])
    until(lambda: failed.status.ended)
    queue.timeout_s = 2
    until(lambda: hanging.status.ended)
    queue.timeout_s = 60
    until(lambda: last.status.ended)
    assert (failed.status, failed.output) == (Status.FAILED, "error: no such thing")
    assert hanging.status is Status.TIMED_OUT
    assert last.status is Status.FINISHED


def test_closing_leaves_no_process_not_even_a_jobs_children(queue: JobQueue) -> None:
    child = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', "
    child += "'import time; time.sleep(99)']).pid, flush=True); time.sleep(99)"
    job, waiting = queue.add([script(child), script("print()")])
    until(lambda: len(results.read_log(job.log).split("\n")) > 2)
    pid = int(results.read_log(job.log).split("\n")[-2])
    assert alive(pid)
    queue.close()
    assert not alive(pid)
    assert job.status is Status.CANCELLED
    assert waiting.status is Status.CANCELLED


def test_a_job_ends_with_the_children_it_left(queue: JobQueue) -> None:
    child = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', "
    child += "'import time; time.sleep(99)']).pid, flush=True)"
    (job,) = queue.add([script(child)])
    until(lambda: job.status.ended)
    pid = int(results.read_log(job.log).split("\n")[-2])
    until(lambda: not alive(pid), 5)  # it is killed, and takes its time to go


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_no_process(number: int, tmp_path: Path) -> None:
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
from pathlib import Path
from lt.commands import Plan
from lt.headless import open_queue
with open_queue(60, Path(sys.argv[1])) as queue:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(99)"
    queue.add([Plan("sleep", "default", "N150", ("-c", code))])
    while queue.busy:
        queue.wait_a_little()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL
    )
    log = tmp_path / "logs" / "0001-N150-default-sleep.log"
    until(lambda: len(results.read_log(log).split("\n")) > 2)
    pid = int(results.read_log(log).split("\n")[-2])
    process.send_signal(number)
    process.wait(timeout=30)
    until(lambda: not alive(pid))


def test_results_come_from_the_jobs_own_record(
    queue: JobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.jsonl"
    monkeypatch.setattr(results, "RECORDS", path)
    monkeypatch.setattr(results.read_record, "__defaults__", (path,))
    monkeypatch.setattr(results.records_size, "__defaults__", (path,))
    path.write_text(json.dumps({**RECORD, "command": "before"}) + "\n")
    code = f"open({str(path)!r}, 'a').write(open({str(tmp_path / 'new')!r}).read())"
    mine = script(code)
    lines = [
        {**RECORD, "command": mine.recorded_command},
        {**RECORD, "command": mine.recorded_command, "device": "T3K", "top1": 1.0},
        {**RECORD, "command": "another process", "top1": 2.0},
    ]
    (tmp_path / "new").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{damaged\n")
    (job,) = queue.add([mine])
    until(lambda: job.status.ended)
    assert job.result == results.Result(12.5, 40.0, 90.0, 99.0, "measured")


def test_a_prediction_is_read_from_its_json(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('a warning\n{"no": 1}\n{"tokens_per_s_per_user": 3.0, "ttft_ms": 4.0,\n'
                   '"provenance": "modelled"}\n')  # fmt: skip
    assert results.read_prediction(log) == results.Result(3.0, 4.0, provenance="modelled")


def test_a_new_session_knows_the_last_ones_jobs(tmp_path: Path) -> None:
    first = JobQueue(folder=tmp_path)
    sleeping = script("import time; time.sleep(99)")
    done, *_ = first.add([script("print('x')"), sleeping, sleeping])
    until(lambda: done.status.ended)
    first.close()
    second = JobQueue(folder=tmp_path)
    cancelled = Status.CANCELLED
    assert [job.status for job in second.jobs] == [Status.FINISHED, cancelled, cancelled]
    (fourth,) = second.add([script("print()")])
    assert fourth.number == 4  # the third never started
    second.close()
    (tmp_path / "state.json").write_text("[{")
    JobQueue(folder=tmp_path).close()


# --- commands


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("demo-64",), "'demo-64'.*demo-32"),
        (("demo", "llama-9"), "'llama-9'.*Llama-3.1-8B"),
        (("demo", "default", "N450"), "'N450'.*N150, N300"),
        (("",), "no command.*table"),
    ],
)
def test_an_unknown_word_names_the_alternatives(arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        plan(*arguments)


def test_two_models_in_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_DIR", "/")
    monkeypatch.setenv("HF_MODEL", "a")
    with pytest.raises(ValueError, match=r"HF_MODEL \(a\) and LLAMA_DIR \(/\) are both set"):
        main(["table", "--dry"])


@pytest.mark.parametrize("named", [None, "./a model", "default", "org/model", "Llama-3.2-1B"])
@pytest.mark.parametrize("variable", ["HF_MODEL", "LLAMA_DIR"])
def test_demo_and_prediction_are_of_the_model_that_is_named_else_of_the_environments(
    named: str | None, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = str(tmp_path / "a model")
    Path(theirs).mkdir()
    monkeypatch.setenv(variable, "a model")
    monkeypatch.chdir(tmp_path)  # jobs run elsewhere, so they are told a whole path
    asked: list[Plan] = []
    monkeypatch.setattr(headless, "run_table", lambda plans, *_, **__: asked.extend(plans) or 0)
    words = ["demo predict", *(["--models", named] if named else [])]
    assert main([*words, "--out", str(tmp_path / "t.md")]) == 0
    demo, prediction = asked
    expected = theirs if named in (None, "./a model") else named
    assert prediction.arguments[prediction.arguments.index("--model") + 1] == expected
    shown = [*demo.argv[: demo.argv.index(sys.executable)], "env"]
    seen = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.splitlines()
    models = [line for line in seen if line.startswith(("HF_MODEL=", "LLAMA_DIR="))]
    assert models == ([] if expected == "default" else [f"HF_MODEL={expected}"])


def test_commands_multiply_models_and_devices() -> None:
    assert len(plan("demo demo-32", "default, llama-3.1-8b", "n150 T3K")) == 8
    assert len(plan("pareto", "default", "N150")) == 2 * 14
    assert all(plan(name) for name in COMMANDS)
    (typed,) = plan("pytest demo/simple_text_demo.py -k 'performance and batch-1'")
    assert typed.recorded_command.startswith("pytest demo/simple_text_demo.py -k 'perf")


# --- pareto

points = st.lists(
    st.builds(
        Point, st.text("abc", max_size=3), st.integers(1, 9).map(float),
        st.integers(1, 9).map(float), st.just(99.0), st.just("modelled"),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@given(points)
def test_the_front_is_what_nothing_beats(some: list[Point]) -> None:
    best = pareto.front(some)
    assert not any(pareto.beats(other, point) for point in best for other in some)
    for point in some:
        same = [(p.speed, p.top1) for p in best]
        assert (point.speed, point.top1) in same or any(pareto.beats(p, point) for p in best)


@given(points, st.integers(20, 100), st.integers(5, 40))
def test_the_text_plot_keeps_to_its_size(some: list[Point], width: int, height: int) -> None:
    lines = pareto.text_plot(some, width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= max(width, 30)


def test_plots_and_tables_say_where_figures_come_from(tmp_path: Path) -> None:
    some = [Point("performance", 9.0, 80.0, 99.0, "modelled", 5.0),
            Point("precision_cfg = {ff2: bf16}", 7.0, 90.0, 100.0, "measured")]  # fmt: skip
    paths = pareto.save_all(tmp_path, some, "m", "N150")
    assert {path.suffix for path in paths} == {".png", ".svg", ".csv", ".json", ".md"}
    rows = json.loads((tmp_path / "m_N150_pareto.json").read_text())
    assert [row.pop("front") for row in rows] == [True, True]
    assert [Point(**row) for row in rows] == some
    text = (tmp_path / "m_N150_pareto.md").read_text()
    assert "modelled by perf.predict" in text
    assert "measured on silicon" in text


def test_accuracy_and_speed_of_a_setting_are_joined(queue: JobQueue) -> None:
    queue.close()
    jobs = [queue._new_job(script("", setting="performance")) for _ in range(3)]
    figures = [results.Result(99.0, None, 90.0, 99.0, "host"),
               results.Result(10.0, 5.0, provenance="modelled"),
               results.Result(11.0, 6.0, provenance="measured")]  # fmt: skip
    for job, found in zip(jobs, figures, strict=True):
        job.status, job.result = Status.FINISHED, found
    (point,) = pareto.points_of(jobs)
    assert (point.speed, point.top1, point.provenance) == (11.0, 90.0, "measured")
    (point,) = pareto.points_of(jobs[:2])
    assert (point.speed, point.provenance) == (10.0, "modelled"), "never the emulator's own speed"


# --- search


def test_moves_become_a_decoder_file_that_says_the_same(tmp_path: Path) -> None:
    config = load_config("default")
    base = ModelPrecision.parse(search.BASE, config)
    moves = [search.Move("ff2", range(6, 12)), search.Move("wo", range(3))]
    mixture = search.apply(base, moves)
    path = search.save_decoder_file(tmp_path, mixture, config, "N150")
    assert ModelPrecision.from_decoder_config(path, config).layers == mixture.layers
    changed = [i for i, layer in enumerate(mixture.layers) if layer != base.layers[i]]
    assert changed == [0, 1, 2, *range(6, 12)]
    other = search.save_decoder_file(tmp_path, search.apply(base, moves[:1]), config, "N150")
    assert other != path


def test_candidates_take_enough_moves_to_be_as_fast() -> None:
    moves = [search.Move("ff2", range(1), saved_us=2.0, harm=0.1)] * 10
    assert search.cuts(moves, 7.0) == [1, 3, 4, 6, 8]
    assert search.cuts(moves, 99.0) == [3, 7, 10]


# --- the screen


def on_screen(queue: JobQueue, act: Callable[[Any, Any], Any], size: tuple[int, int]) -> None:
    from lt.app import LtApp

    async def run() -> None:
        app = LtApp(queue)
        async with app.run_test(size=size) as pilot:
            await act(app, pilot)

    asyncio.run(run())


async def _row(app: Any, pilot: Any, status: str) -> list[str]:
    from textual.widgets import DataTable

    for _ in range(200):
        await pilot.pause(0.05)
        app.refresh_jobs()
        table = app.query_one(DataTable)
        if table.row_count:
            cells = [str(cell) for cell in table.get_row_at(0)]
            if status in cells:
                return cells
    raise AssertionError(f"never {status}: {cells}")


def test_typing_a_command_runs_it_and_shows_what_came(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = 'print(\'{"tokens_per_s_per_user": 3, "ttft_ms": 4, "provenance": "modelled"}\')'
    one = Plan("predict", "default", "N150", ("-c", f"{code} # perf.predict"), (), "performance")
    monkeypatch.setattr(Plan, "is_prediction", property(lambda _: True))
    monkeypatch.setattr(
        "lt.app.plan", lambda *texts: [one] if texts[0] == "predict" else plan(*texts)
    )

    async def act(app: Any, pilot: Any) -> None:
        await pilot.press(*"wrong", "enter")
        assert "unknown command 'wrong'" in str(app.query_one("#message").render())
        app.query_one("#command").value = "predict"
        await pilot.press("enter")
        cells = await _row(app, pilot, "Finished")
        assert cells[1:4] == ["predict", "default", "N150"]
        assert "3.0" in cells
        assert "modelled" in cells
        await pilot.press("m")
        assert "| 3.0 | 4.0 | modelled |" in (queue.folder / "results.md").read_text()
        await pilot.press("l")
        assert "tokens_per_s_per_user" in app.screen.query_one("TextArea").text
        await pilot.press("escape", "x")
        app.refresh_jobs()
        assert not queue.jobs

    on_screen(queue, act, (120, 40))


def test_a_running_job_can_be_cancelled_and_restarted_at_80_by_24(queue: JobQueue) -> None:
    queue.add([script("import time; time.sleep(99)")])

    async def act(app: Any, pilot: Any) -> None:
        await pilot.resize_terminal(200, 60)
        await pilot.resize_terminal(40, 10)
        await pilot.resize_terminal(80, 24)
        await _row(app, pilot, "Starting")
        app.query_one("DataTable").focus()
        await pilot.press("r")
        assert "still runs" in str(app.query_one("#message").render())
        await pilot.press("x")
        await _row(app, pilot, "Cancelled")
        await pilot.press("r")
        await pilot.press("X")
        await pilot.pause(0.2)
        footer = " ".join(str(key.description) for key in app.query("FooterKey"))
        assert "Restart" in footer
        assert "Markdown" in footer

    on_screen(queue, act, (80, 24))


def test_markdown_names_command_and_provenance(queue: JobQueue) -> None:
    (job,) = queue.add([script("raise SystemExit('error: a | b')", setting="performance")])
    until(lambda: job.status.ended)
    text = export.markdown([job])
    assert "## Performance" in text
    assert "Failed: error: a / b" in text
    assert f"`env -u FAKE_DEVICE -u HF_MODEL -u LLAMA_DIR {sys.executable}" in text
