"""Dry runs are processes of their own; two run at once, started before their tests need them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.device_specs import SPECS
from backends.dry_run import environment
from backends.dry_run.worker import run_module
from runtime.dry_run.worker import run_checks


@pytest.fixture(scope="session", autouse=True)
def wheel() -> None:
    """Skip where the wheel cannot be, with the reason."""
    reason = environment.unavailable()
    if reason:
        pytest.skip(reason)


CHECKS_PER_PROCESS = 10


class Checks:
    """Reports of checks by their options, each run once; those of one device share processes."""

    def __init__(self, pool: ThreadPoolExecutor, wanted: list[dict[str, Any]]) -> None:
        by_device: dict[str, list[dict[str, Any]]] = {}
        for options in wanted:
            by_device.setdefault(options["device"], []).append(options)
        self._batches: dict[str, tuple[Future[list[dict[str, Any]]], int]] = {}
        large_first = sorted(by_device.items(), key=lambda item: -SPECS[item[0]].num_chips)
        for _, group in large_first:
            for first in range(0, len(group), CHECKS_PER_PROCESS):
                batch = group[first : first + CHECKS_PER_PROCESS]
                future = pool.submit(run_checks, batch)
                for place, options in enumerate(batch):
                    self._batches[json.dumps(options)] = (future, place)

    def report(self, options: dict[str, Any]) -> dict[str, Any]:
        future, place = self._batches[json.dumps(options)]
        return future.result()[place]


@pytest.fixture(scope="session")
def checks(request: pytest.FixtureRequest, wheel: None) -> Iterator[Checks]:
    """At work on every selected test that has a `check_options` parameter."""
    parameters = [
        item.callspec.params for item in request.session.items if hasattr(item, "callspec")
    ]
    wanted = [given["check_options"] for given in parameters if "check_options" in given]
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield Checks(pool, wanted)
        pool.shutdown(cancel_futures=True)


def run_json(module: str, folder: Path, *arguments: str) -> Any:
    """What a module of these tests writes into its first argument, run as a process of its own."""
    answer = folder / "answer.json"
    outcome = run_module(module, [str(answer), *arguments], timeout_s=300)
    assert outcome.problem is None, f"{outcome.problem}\n{outcome.errors[-2000:]}"
    return json.loads(answer.read_text())
