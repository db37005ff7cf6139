"""Runs a module in a process of its own: one mocked system each, and a crash is only an outcome.

The wheel can end a process (a segmentation fault in native code); the caller then learns how, and
which Python line was running.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900.0
_FAULT_FRAME = re.compile(r'^  File "(?P<path>[^"]+)", line (?P<line>\d+)', re.M)


@dataclass(frozen=True)
class Outcome:
    """How a worker ended; `problem` is None when it ended well."""

    output: str
    errors: str
    problem: str | None = None
    timed_out: bool = False


def run_module(module: str, arguments: Sequence[str], *, timeout_s: float) -> Outcome:
    """`python -m module arguments` from the repository root."""
    command = [sys.executable, "-X", "faulthandler", "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        errors = error.stderr or b""
        text = errors.decode(errors="replace") if isinstance(errors, bytes) else errors
        return Outcome("", text, f"no answer within {timeout_s:.0f} s", timed_out=True)
    if done.returncode == 0:
        return Outcome(done.stdout, done.stderr)
    return Outcome(done.stdout, done.stderr, _problem(done.returncode, done.stderr))


def run_checks(
    checks: Sequence[dict[str, Any]],
    *,
    cache_dir: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[dict[str, Any]]:
    """Checks of one device in one process, which saves imports; a crash costs only its own check.

    Each entry is the fields of runtime/dry_run_passes.py's CheckOptions; one report for each.
    """
    reports: list[dict[str, Any]] = []
    while len(reports) < len(checks):
        left = checks[len(reports) :]
        with tempfile.TemporaryDirectory() as folder:
            answers = Path(folder) / "reports.jsonl"
            arguments = ["--checks", json.dumps(left), "--reports", str(answers)]
            if cache_dir is not None:
                arguments += ["--cache_dir", str(cache_dir)]
            outcome = run_module(
                "runtime.dry_run_check", arguments, timeout_s=timeout_s * len(left)
            )
            if answers.is_file():
                lines = answers.read_text(encoding="utf-8").splitlines()
                reports += [json.loads(line) for line in lines]
        if outcome.problem is not None and len(reports) < len(checks):
            failed = checks[len(reports)]
            subject = {name: failed.get(name) for name in ("model", "device", "optimizations")}
            status = "timeout" if outcome.timed_out else "crash"
            reports.append(subject | {"status": status, "reason": outcome.problem, "runs": []})
    return reports


def _problem(code: int, errors: str) -> str:
    if code < 0:
        where = _our_frame(errors)
        name = signal.Signals(-code).name
        return f"the process ended by {name}{f' at {where}' if where else ''}"
    lines = [line for line in errors.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"the process ended with code {code}"


def _our_frame(errors: str) -> str:
    """Innermost line of ours outside backends/, from the stack faulthandler prints."""
    for frame in _FAULT_FRAME.finditer(errors):
        path = Path(frame["path"])
        if ROOT in path.parents and ROOT / "backends" not in path.parents:
            return f"{path.relative_to(ROOT)}:{frame['line']}"
    return ""
