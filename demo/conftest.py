"""pytest for the demos: overrides, exact ids, visible output, and errors in one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from backends.command import log_to
from demo.options import add_options, given_options
from demo.output import Output
from models.outputs import check_file
from perf.record import RECORDS
from runtime.find import device_of
from runtime.settings import Settings

OUTPUT = pytest.StashKey[Any]()
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every override of demo/options.py."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let pytest, too, write where a lost output ends the run in one line."""
    sys.stdout = config.stash[OUTPUT] = Output(sys.stdout)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Write what is left while a failure still is one line."""
    try:
        config.stash[OUTPUT].flush()
    except pytest.exit.Exception as lost:
        raise SystemExit(lost.returncode) from None


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """A word of -k that is exactly an id means that id alone: batch-1 is not batch-16."""
    specs: dict[pytest.Item, Any] = {
        item: item.callspec for item in items if isinstance(item, pytest.Function)
    }
    ids = {item: {spec.params["case"].id, spec.id} for item, spec in specs.items()}
    result = yield
    expression = config.option.keyword
    words = set(re.findall(r"[\w-]+", expression))
    exact = words & set().union(*ids.values())
    if exact and "not" not in words:
        config.hook.pytest_deselected(items=[item for item in items if not ids[item] & exact])
        items[:] = [item for item in items if ids[item] & exact]
    if expression and ids and not items:
        known = ", ".join(dict.fromkeys(spec.params["case"].id for spec in specs.values()))
        raise pytest.UsageError(
            f"-k {expression!r} selects no demo: combine performance or accuracy with one of "
            f"{known}"
        )
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what our own checks refuse as the one line it is, without a traceback."""
    report = yield
    if report.failed and call.excinfo is not None and is_our_refusal(call.excinfo):
        report.longrepr = f"error: {call.excinfo.value}"
    return report


def is_our_refusal(excinfo: pytest.ExceptionInfo[BaseException]) -> bool:
    """Whether a `raise ValueError` of this repository is what ended the test."""
    if not isinstance(excinfo.value, ValueError):
        return False
    last = excinfo.traceback[-1]
    return ROOT in Path(last.path).parents and str(last.statement).lstrip().startswith("raise")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Logs, progress bars and texts are what a demo is for: do not capture them."""
    capture = item.config.pluginmanager.getplugin("capturemanager")
    output = item.config.stash[OUTPUT]
    with capture.global_and_fixture_disabled():
        log_to(output)
        output.write("\n")  # leave pytest's line with the file name
        return (yield)


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """The environment, and the backend it asks for, selected before any model code is imported."""
    import backends

    settings = Settings.from_env(fake_device=request.config.getoption("FAKE_DEVICE"))
    check_file(RECORDS)
    first: Any = request.session.items[0]
    backends.select(
        settings.backend, device_of(settings, first.callspec.params["case"].default_device)
    )
    return settings


@pytest.fixture(scope="session")
def given(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The overrides on the command line."""
    return given_options(request.config)


def skip_reasons(config: pytest.Config) -> list[str]:
    """Why demos were skipped, if none ran."""
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    stats = reporter.stats if reporter else {}
    if any(stats.get(outcome) for outcome in ("passed", "failed", "error")):
        return []
    reasons = [report.longrepr[2] for report in stats.get("skipped", [])]
    return list(dict.fromkeys(reason.removeprefix("Skipped: ") for reason in reasons))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A demo that could not run says why."""
    for reason in skip_reasons(config):
        terminalreporter.write_line(f"skipped: {reason}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing ran: that is no success, but on CI machines, which skip by plan."""
    if skip_reasons(session.config) and not Settings.from_env().ci:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
