"""No bad input to any program ends in a traceback or hangs: one line, and a fitting exit code.

A sample runs always; all of them (`-m full`) take some ten minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import bad_inputs_tools
from tests.bad_inputs import Case, all_cases, furnish
from tests.programs import Programs
from tests.tiny_models import write_tiny

CASES = [*all_cases(), *bad_inputs_tools.all_cases()]
SAMPLED = CASES[7::60]
LIMIT_S = 30.0
REFUSED = {"pytest": (1, 2, 4, 5)}  # pytest's own: 4 is a wrong command line, 5 nothing to run


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with Programs() as warm:
        yield warm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("llama-linear", tmp_path_factory.mktemp("models") / "tiny")


def fault_of(programs: Programs, case: Case, model: Path, folder: Path) -> str | None:
    """What is wrong with how a program ended, or None."""
    furnish(folder, model, case.prepare)
    before = {file.name: file.read_bytes() for file in model.iterdir() if file.is_file()}
    ended = programs.run(
        case.module, case.arguments, cwd=folder, environ=case.environ, timeout_s=LIMIT_S
    )
    shown = " | ".join(ended.output.strip().splitlines()[-3:])[-500:]
    if ended.timed_out:
        return f"{case.name}: still running after {LIMIT_S:g} s: {shown}"
    if re.search(r"Traceback|^E {3}\S", ended.output, flags=re.MULTILINE):
        return f"{case.name}: a traceback: {shown}"
    if ended.code and ended.code not in REFUSED.get(case.module, (1, 2)):
        return f"{case.name}: exit code {ended.code}: {shown}"
    errors = [line for line in ended.output.splitlines() if "error: " in line.lower()]
    if ended.code and max(map(len, errors), default=0) > 1500:
        return f"{case.name}: an error of {max(map(len, errors))} characters"
    assert before == {file.name: file.read_bytes() for file in model.iterdir() if file.is_file()}
    return None


def faults(programs: Programs, cases: Sequence[Case], model: Path, folder: Path) -> list[str]:
    """All that is wrong."""
    found = (
        fault_of(programs, case, model, folder / str(number)) for number, case in enumerate(cases)
    )
    return [fault for fault in found if fault]


def test_there_are_enough_cases_each_of_its_own() -> None:
    assert len(CASES) >= 1000
    assert len({(case.name, case.arguments, tuple(case.environ.items())) for case in CASES}) >= 1000


def test_a_sample_of_bad_inputs_ends_in_one_line(
    programs: Programs, model: Path, tmp_path: Path
) -> None:
    assert not faults(programs, SAMPLED, model, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("part", range(20))
def test_all_bad_inputs_end_in_one_line(
    programs: Programs, model: Path, tmp_path: Path, part: int
) -> None:
    assert not faults(programs, CASES[part::20], model, tmp_path)
