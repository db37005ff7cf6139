"""Where programs write: a place that cannot take it is refused early, or ends a program in a line.

Standard output that nobody reads or that is full, files that are folders, disks that are full.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.record import BenchmarkRecord, append_record, read_records
from tests.bad_inputs import demo
from tests.programs import PIPE, ROOT, Ended, Programs
from tests.tiny_models import write_tiny

MODEL = "SmolLM2-135M-Instruct"
PREDICT = ("perf.predict", "--model", MODEL, "--device", "N150")
SWEEP = ("perf.sweep", "--model", MODEL, "--devices", "N150", "--batch", "1", "--context", "128")
HELPFUL = (
    "perf.predict", "perf.sweep", "perf.report", "perf.gate", "perf.calibrate", "perf.accuracy",
    "perf.host_speed", "lt", "runtime.dry_run", "backends.selftest", "models.checkpoints.convert",
    "references.generate_reference_hf", "demo.server_example_tt", "demo.offline_inference_tt",
    "demo.example_requests_client", "scripts.repack_weights_70b", "scripts.repack_weights_90b",
)  # fmt: skip
SPEAKING = [*((module, "--help") for module in HELPFUL), PREDICT, SWEEP, ("lt", "table", "--dry")]
WRITING = (  # a command, and the option that says where its result goes
    (PREDICT, "--trace", ".json"),
    (PREDICT, "--plot", ".svg"),
    (SWEEP, "--csv", ".csv"),
    (SWEEP, "--plot", ".svg"),
    (("perf.report",), "--html", ".html"),
    (("perf.calibrate",), "--output", ".json"),
    (("lt", "table"), "--out", ".md"),
    (("references.generate_reference_hf",), "--out", ".json"),
    (("demo.example_requests_client",), "--plot", ".png"),
)
FOLDERS = (
    (("lt", "pareto"), "--out"),
    (("models.checkpoints.convert", "--model", "nowhere"), "--cache"),
    (("runtime.dry_run", "--model", MODEL, "--device", "N150"), "--cache_dir"),
    (("scripts.repack_weights_70b", "nowhere"), ""),
)


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with Programs() as warm:
        yield warm


def said(command: tuple[str, ...]) -> str:
    return " ".join(command)[:60]


@pytest.mark.parametrize("command", SPEAKING, ids=said)
@pytest.mark.parametrize("stdout", [PIPE, "/dev/full"])
def test_a_lost_output_ends_a_program_in_at_most_one_line(
    programs: Programs, tmp_path: Path, command: tuple[str, ...], stdout: str
) -> None:
    module, *arguments = command
    ended = programs.run(module, arguments, cwd=tmp_path, stdout=stdout)
    assert ended.code == 1, ended.output
    if stdout == PIPE:
        assert not ended.output
    else:
        (line,) = ended.output.splitlines()
        assert line.endswith(f"{module.split('.')[-1]}: error: No space left on device")


def test_programs_log_what_is_said_and_no_more() -> None:
    code = (
        "from loguru import logger; from backends.command import run; "
        "run(lambda: (logger.info('read'), logger.warning('damaged')) and 0, 'x')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "read\nWARNING: damaged\n")


@pytest.mark.parametrize(("command", "option", "suffix"), WRITING)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    programs: Programs, tmp_path: Path, command: tuple[str, ...], option: str, suffix: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / f"folder{suffix}").mkdir()
    long = "x" * 300
    for place in (f"folder{suffix}", f"file/new{suffix}", f"/proc/new{suffix}", long + suffix):
        module, *arguments = command
        ended = programs.run(module, [*arguments, option, place], cwd=tmp_path, timeout_s=10)
        assert_refused(ended, "cannot write")


@pytest.mark.parametrize(("command", "option"), FOLDERS)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    programs: Programs, tmp_path: Path, command: tuple[str, ...], option: str
) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below", "/proc/below", "x" * 300):
        module, *arguments = command
        asked = [*arguments, *filter(None, [option]), place]
        assert_refused(programs.run(module, asked, cwd=tmp_path, timeout_s=10), "cannot write")
    assert not (tmp_path / "generated").exists()


def assert_refused(ended: Ended, words: str) -> None:
    assert ended.code == 2, ended.output
    assert words in ended.output.splitlines()[-1]
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("obstacle", ["a file as the folder", "a folder as the file", "full"])
def test_a_demo_that_could_not_leave_its_record_says_so_before_it_runs(
    programs: Programs, tmp_path: Path, obstacle: str
) -> None:
    write_tiny("llama-linear", tmp_path / "model")
    if obstacle == "a file as the folder":
        (tmp_path / "generated").touch()
    elif obstacle == "a folder as the file":
        (tmp_path / "generated" / "benchmark_records.jsonl").mkdir(parents=True)
    case = demo("record")
    ended = programs.run(
        case.module, case.arguments, cwd=tmp_path, environ=case.environ,
        largest_file=50_000 if obstacle == "full" else -1,
    )  # fmt: skip
    assert ended.code == 1
    (line,) = (line for line in ended.output.splitlines() if "cannot write" in line)
    assert "benchmark_records.jsonl" in line or "generated" in line
    assert "Traceback" not in ended.output and "answers 1 user" not in ended.output


@pytest.mark.parametrize("stdout", [PIPE, "/dev/full"])
def test_a_demo_whose_output_is_lost_ends_in_order(
    programs: Programs, tmp_path: Path, stdout: str
) -> None:
    write_tiny("llama-linear", tmp_path / "model")
    case = demo("lost")
    ended = programs.run(
        case.module, case.arguments, cwd=tmp_path, environ=case.environ, stdout=stdout
    )
    assert ended.code == 1, ended.output
    wanted = "" if stdout == PIPE else "error: cannot write the output: No space left on device"
    assert ended.output.strip() == wanted


def test_a_record_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    record = BenchmarkRecord("m", "emulator", "N150", (1, 1), 1, 1, 128, 4, "performance", "host")
    path = tmp_path / "records.jsonl"
    append_record(record, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(ValueError, match="cannot be added to .*records.jsonl: File too large"):
            append_record(record, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    append_record(record, path)
    assert len(read_records(path)) == 2
