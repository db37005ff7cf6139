"""Dry runs are processes of their own; two run at once, started before their tests need them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.dry_run import environment
from backends.dry_run.worker import run_check, run_module


@pytest.fixture(scope="session", autouse=True)
def wheel() -> None:
    """Skip where the wheel cannot be, with the reason."""
    reason = environment.unavailable()
    if reason:
        pytest.skip(reason)


class Checks:
    """Reports of checks by their options, each run once."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._running: dict[str, Future[dict[str, Any]]] = {}

    def start(self, options: dict[str, Any]) -> Future[dict[str, Any]]:
        key = json.dumps(options, sort_keys=True)
        if key not in self._running:
            self._running[key] = self._pool.submit(run_check, options)
        return self._running[key]

    def report(self, options: dict[str, Any]) -> dict[str, Any]:
        return self.start(options).result()


@pytest.fixture(scope="session")
def checks(request: pytest.FixtureRequest, wheel: None) -> Iterator[Checks]:
    """The pool, already at work on every selected test that has a `check_options` parameter."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        checks = Checks(pool)
        for item in request.session.items:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            if "check_options" in parameters:
                checks.start(parameters["check_options"])
        yield checks
        pool.shutdown(cancel_futures=True)


def run_json(module: str, folder: Path, *arguments: str) -> Any:
    """What a module of these tests writes into its first argument, run as a process of its own."""
    answer = folder / "answer.json"
    outcome = run_module(module, [str(answer), *arguments], timeout_s=300)
    assert outcome.problem is None, f"{outcome.problem}\n{outcome.errors[-2000:]}"
    return json.loads(answer.read_text())
