"""What our code calls exists in the wheel and in the emulator, with the same parameters."""

from __future__ import annotations

from typing import Any

import pytest

import backends
from tests.dry_run.conftest import run_json
from tests.dry_run.surface import Parameters, Use, parameters_of, resolve, uses

MOST_POSITIONS = 20
EMULATOR_ONLY = {"configure"}  # which product to be, and where to compute


@pytest.fixture(scope="module")
def emulator() -> Any:
    backends.select("emulator")
    return backends.ttnn


@pytest.fixture(scope="module")
def emulated_ops(emulator: Any) -> dict[str, Any]:
    from backends.emulator.launch import REGISTRY

    return dict(REGISTRY)


@pytest.fixture(scope="module")
def used() -> list[Use]:
    return [use for use in uses() if use.name not in EMULATOR_ONLY]


@pytest.fixture(scope="module")
def wheels(
    used: list[Use], emulated_ops: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[Parameters] | None] | None]:
    """By name: None where the wheel has no such thing, else its overloads where they are known."""
    names = sorted({use.name for use in used} | set(emulated_ops))
    folder = tmp_path_factory.mktemp("surface")
    return run_json("tests.dry_run.surface", folder, ",".join(names))


def _accepts(overload: Parameters, use: Use) -> bool:
    positional, keyword = overload
    by_name = [*positional[use.positional or 0 :], *keyword]
    return (use.positional or 0) <= len(positional) and set(use.keywords) <= set(by_name)


def test_all_we_name_is_in_the_wheel_and_in_the_emulator(
    used: list[Use], wheels: dict[str, Any], emulator: Any
) -> None:
    assert len({use.name for use in used}) > 60
    assert [use for use in used if wheels[use.name] is None] == []
    assert [use for use in used if resolve(emulator, use.name) is None] == []


def test_the_wheel_takes_the_arguments_we_give(used: list[Use], wheels: dict[str, Any]) -> None:
    wrong = []
    for use in used:
        overloads = wheels[use.name]["overloads"]
        if use.positional is None or overloads is None:
            continue
        if not any(_accepts(overload, use) for overload in overloads):
            wrong.append((use, overloads))
    assert wrong == []


def test_the_emulator_takes_the_arguments_we_give(used: list[Use], emulator: Any) -> None:
    wrong = []
    for use in used:
        overloads = parameters_of(resolve(emulator, use.name))
        if use.positional is None or overloads is None:
            continue
        if not any(_accepts(overload, use) for overload in overloads):
            wrong.append((use, overloads))
    assert wrong == []


def test_the_emulator_invents_no_op_and_no_parameter(
    emulated_ops: dict[str, Any], wheels: dict[str, Any]
) -> None:
    invented = []
    for name, function in emulated_ops.items():
        if wheels[name] is None:
            invented.append(name)
            continue
        ours, overloads = parameters_of(function), wheels[name]["overloads"]
        if ours is None or overloads is None:
            continue
        ((positional, keyword),) = ours
        places = zip(*(_padded(theirs) for theirs, _ in overloads), strict=True)
        named = {name for theirs in overloads for part in theirs for name in part}
        in_order = all(name in there for name, there in zip(positional, places, strict=False))
        if not in_order or not {*positional, *keyword} <= named:
            invented.append(f"{name}{ours[0]} is not {overloads}")
    assert invented == [], "\n".join(invented)


def _padded(names: list[str]) -> list[str]:
    """Overloads of one op side by side: what stands at each position in any of them."""
    return [*names, *[""] * (MOST_POSITIONS - len(names))]
