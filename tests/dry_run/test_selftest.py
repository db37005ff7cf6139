"""The self-test tells what works here, and says why where something cannot be tried."""

from __future__ import annotations

import pytest

from backends import selftest
from backends.device_specs import SPECS
from backends.dry_run.worker import Outcome


def test_every_backend_and_every_system_has_a_line() -> None:
    found = {(target.backend, target.device) for target in selftest.targets()}
    assert {("dry-run", device) for device in SPECS} <= found
    assert {backend for backend, _ in found} == {"silicon", "dry-run", "emulator"}


def test_the_exit_code_counts_failures_and_a_skip_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(module: str, arguments: list[str], *, timeout_s: float) -> Outcome:
        fails = arguments[1] == "emulator"
        return Outcome('{"add": 1.5}', "", "no such op" if fails else None)

    monkeypatch.setattr(selftest, "run_module", answer)
    tried = [
        selftest.Target("silicon", "N150", "there is no device"),
        selftest.Target("dry-run", "N150"),
        selftest.Target("emulator", "N150"),
    ]
    monkeypatch.setattr(selftest, "targets", lambda: iter(tried))
    assert selftest.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["SKIP", "PASS", "FAIL"]
    assert lines[0].endswith("there is no device")
    assert "add 1.5 ms" in lines[1]
    assert lines[2].endswith("no such op")


def test_the_dry_run_of_one_chip_passes() -> None:
    verdict, detail = selftest.try_target(selftest.Target("dry-run", "N150"))
    assert verdict == "PASS", detail
