"""A trace that would fail, or corrupt memory, on silicon is refused by the dry run."""

from __future__ import annotations

import pytest

from tests.dry_run.conftest import run_json

RULES = {
    "good": "",
    "new_program": "a program was compiled inside a trace capture",
    "host_read": "ttnn.to_torch",
    "lost_input": "which has been deallocated",
    "overwritten": "where the trace writes: the replay destroys it",
    "table_of_a_program": "which no op returned, was allocated after the capture",
    "captured_anew": "",
    "left_by_another": "",
    "released": "there is no trace",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_json("tests.dry_run.trace_rules", tmp_path_factory.mktemp("traces"))


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_of_traces_is_named(answers: dict[str, str], rule: str) -> None:
    assert RULES[rule] in answers[rule]
    assert bool(answers[rule]) == bool(RULES[rule])
    assert not answers[rule] or "tests/dry_run/trace_rules.py:" in answers[rule]
