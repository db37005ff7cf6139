"""Where results lie, what is refused and what memory is taken: as the wheel says on mock chips."""

from __future__ import annotations

from typing import Any

import pytest

import backends
from backends.mesh import open_mesh
from tests.ops import placement_cases
from tests.ops.wheel import answers


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    backends.select("emulator")
    with open_mesh("N150") as device:
        return {
            "placements": placement_cases.outcomes(backends.ttnn, device),
            "memory": placement_cases.bank_bytes(backends.ttnn, device),
        }


@pytest.mark.parametrize("name", placement_cases.cases())
def test_result_lies_where_the_wheel_puts_it_or_both_refuse(
    name: str, ours: dict[str, Any]
) -> None:
    theirs, found = answers()["placements"][name], ours["placements"][name]
    if theirs.startswith("refused"):
        assert found.startswith(("refused: RuntimeError", "refused: TypeError")), theirs
    else:
        assert found == theirs


def test_buffers_take_as_many_bytes_of_each_bank_as_on_the_device(ours: dict[str, Any]) -> None:
    assert ours["memory"] == answers()["memory"]
