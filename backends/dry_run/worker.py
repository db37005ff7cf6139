"""Runs a module in a process of its own: one mocked system each, and a crash is only an outcome.

The wheel can end a process (a segmentation fault in native code); the caller then learns how, and
which Python line was running.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
        return Outcome("", text, f"no answer within {timeout_s:g} s", timed_out=True)
    if done.returncode == 0:
        return Outcome(done.stdout, done.stderr)
    return Outcome(done.stdout, done.stderr, _problem(done.returncode, done.stderr))


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
