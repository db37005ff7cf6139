"""One JSON line per run in generated/benchmark_records.jsonl: what ran, and what came out.

`provenance` says whose figures ttft_ms and tokens_per_s* are: measured (silicon), modelled
(perf/predict, from the ops that ran), or host (wall clock of the emulator, nothing predicted).
The host_* fields are always wall clock.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RECORDS = Path("generated/benchmark_records.jsonl")
ROOT = Path(__file__).resolve().parent.parent
PROVENANCES = ("measured", "modelled", "host")


@dataclass(frozen=True)
class BenchmarkRecord:
    """Fields of a line, in order; None where a run has no such figure."""

    model: str
    backend: str
    device: str
    mesh_shape: tuple[int, int]
    data_parallel: int
    batch_size: int
    prefill_len: int
    generated_tokens: int
    optimizations: str
    provenance: str
    ttft_ms: float | None = None
    tokens_per_s_per_user: float | None = None
    tokens_per_s: float | None = None
    host_ttft_ms: float | None = None
    host_tokens_per_s_per_user: float | None = None
    top1: float | None = None
    top5: float | None = None
    target: dict[str, float] | None = None
    gate: str | None = None
    case: str = ""
    num_layers: int | None = None
    weights: str = "instruct"
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        assert self.provenance in PROVENANCES, self.provenance


def append_record(record: BenchmarkRecord, path: Path = RECORDS) -> None:
    """Add a line, whole or not at all; runs at the same time never mix theirs."""
    line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            try:
                _write(file, line.encode())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise ValueError(f"the run's record cannot be added to {path}: {error.strerror}") from None


def _write(file: io.FileIO, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]
    os.fsync(file.fileno())


def read_records(path: Path = RECORDS) -> list[dict[str, object]]:
    """Every line of a records file, oldest first."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def software_versions() -> dict[str, str]:
    """What produced the figures."""
    found = {"python": platform.python_version()}
    for package in ("torch", "ttnn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def current_commit() -> str:
    """Short hash of the checked-out commit, marked if files were changed; "" outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def current_command() -> str:
    """The command line, as it can be typed again."""
    program = Path(sys.argv[0])
    # python -m package shows as package/__main__.py
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *sys.argv[1:]])
