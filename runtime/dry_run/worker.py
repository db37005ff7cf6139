"""Runs checks in processes of their own, one mocked system each, and collects their reports.

Next: check.py is what runs there; backends/dry_run/worker.py starts it and explains a crash.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.dry_run.worker import run_module

TIMEOUT_S = 900.0


def run_checks(
    checks: Sequence[dict[str, Any]],
    *,
    cache_dir: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[dict[str, Any]]:
    """Checks of one device in one process, which saves imports; a crash costs only its own check.

    Each entry is the fields of passes.py's CheckOptions; one report for each.
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
                "runtime.dry_run.check", arguments, timeout_s=timeout_s * len(left)
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
