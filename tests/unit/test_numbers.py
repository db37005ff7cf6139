"""Numbers that no program may take: each is refused in one line, whoever is asked."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.cases import PageParams
from demo.options import OPTIONS, add_options, read_dict
from lt.__main__ import parser as lt_parser
from models.numbers import NUMBERS, check_number
from perf.predict.__main__ import parser as predict_parser
from perf.sweep.__main__ import parser as sweep_parser
from runtime.dry_run.__main__ import _parser as dry_run_parser
from runtime.sampling import SamplingParams
from serving.launch import add_arguments

JUNK = (
    "", " ", "x", "nan", "inf", "-inf", "-1e30", "1e30", "1e400", "9" * 40, "9" * 5000, "0x10",
    "1.5.2", "-", "²", "None", "[1]", "1,,5",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


class Refused(Exception):
    """What argparse would end the program with."""


def demo_parser() -> argparse.ArgumentParser:
    """The demos' options as pytest registers them."""
    parser = argparse.ArgumentParser()
    parser.addoption = parser.add_argument  # type: ignore[attr-defined]
    parser.getgroup = lambda *_: parser  # type: ignore[attr-defined]
    add_options(parser)
    return parser


def serving_parser() -> argparse.ArgumentParser:
    """What the programs around vLLM have in common."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


PROGRAMS: tuple[tuple[str, Callable[[], argparse.ArgumentParser], list[str]], ...] = (
    ("demo", demo_parser, []),
    ("predict", predict_parser, ["--model", "m", "--device", "N150"]),
    ("dry_run", dry_run_parser, ["--model", "m", "--device", "N150"]),
    ("sweep", sweep_parser, ["--model", "m"]),
    ("lt", lt_parser, []),
    ("serving", serving_parser, []),
)


def numeric_arguments() -> Iterator[Any]:
    """Every argument of a program that reads a number of the table, or several."""
    for program, make, before in PROGRAMS:
        for action in make()._actions:
            if getattr(action.type, "__module__", "") == "models.numbers":
                flag = action.option_strings[0]
                yield pytest.param(make, before, flag, id=f"{program} {flag}")


def refuse(self: argparse.ArgumentParser, message: str) -> None:
    raise Refused(message)


@pytest.mark.parametrize(("make", "before", "flag"), numeric_arguments())
def test_junk_in_place_of_a_number_is_one_line(
    make: Callable[[], argparse.ArgumentParser],
    before: list[str],
    flag: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    for junk in JUNK:
        with pytest.raises(Refused) as refusal:
            make().parse_args([*before, f"{flag}={junk}"])
        line = str(refusal.value)
        assert "number from" in line or "multiple of" in line or " or " in line
        assert "\n" not in line
        assert len(line) < 200


def test_the_programs_have_numbers() -> None:
    assert len(list(numeric_arguments())) >= 27
    assert {option.field for option in OPTIONS} >= {"batch_size", "repeat_batches", "num_layers"}


def test_no_program_reads_a_number_in_a_way_of_its_own() -> None:
    files = subprocess.run(
        ["git", "ls-files", "*.py", ":!tests"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    own = re.compile(r"add_?(?:argument|option)\([^)]*type=(?:int|float|lambda)\b")
    assert not [name for name in files if own.search((ROOT / name).read_text(encoding="utf-8"))]
    assert own.search('p.add_argument("--tokens",\n  type=int)')


VALUES = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5),
    st.lists(st.integers()),
    st.sampled_from([10**400, -(10**400), 2**63, 2**70, "9" * 5000]),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(name=st.sampled_from(sorted(NUMBERS)), value=VALUES)
def test_a_value_is_within_its_bounds_or_refused_in_one_line(name: str, value: Any) -> None:
    bounds = NUMBERS[name]
    try:
        check_number(name, value)
    except ValueError as error:
        assert str(error).startswith(f"{name} is ")
        assert "\n" not in str(error).replace(repr(value), "")
        assert len(str(error)) < 200
        return
    assert not isinstance(value, bool)
    assert isinstance(value, int if bounds.whole else int | float)
    assert bounds.low <= value <= bounds.high
    assert name not in ("batch_size", "block_size") or value in (1, 2, 4, 8, 16, 32, 64, 128)


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(
        [
            "temperature",
            "top_k",
            "top_p",
            "seed",
            "repetition_penalty",
            "max_num_blocks",
            "block_size",
        ]
    ),
    text=st.one_of(
        st.sampled_from([*JUNK, ".nan", ".inf", "null", "true", "{}", "1e999", "2.5"]),
        st.integers().map(str),
        st.floats().map(str),
    ),
)
def test_a_dict_of_any_values_is_taken_or_refused(name: str, text: str) -> None:
    pages = name in ("max_num_blocks", "block_size")
    try:
        values = read_dict(f"{{{name}: {text}}}")
        PageParams.from_dict(values) if pages else SamplingParams.from_dict(values)
    except ValueError as error:
        assert len(str(error)) < 5200
