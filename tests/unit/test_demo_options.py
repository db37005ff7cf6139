"""Overrides are typed, an explicit 0 or false wins, and ids mean exactly one case."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from demo import cases
from demo.cases import DECODE_CASES, GALAXY_CASES, SIMPLE_CASES, Case, PageParams
from demo.options import OPTIONS, add_options, apply_options, given_options
from runtime.sampling import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
CASE = Case(id="batch-1", stop_at_eos=True, max_generated_tokens=200)


def parse(*words: str) -> dict[str, Any]:
    """What given_options makes of a command line."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    group = SimpleNamespace(addoption=parser.add_argument)
    add_options(SimpleNamespace(getgroup=lambda *_: group))
    known = vars(parser.parse_args(list(words)))
    return given_options(SimpleNamespace(getoption=known.__getitem__))


def test_nothing_given_changes_nothing() -> None:
    assert parse() == {}
    assert apply_options(CASE, {}) == CASE


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--stop_at_eos", "0"], "stop_at_eos", False),
        (["--stop_at_eos", "False"], "stop_at_eos", False),
        (["--instruct", "no"], "instruct", False),
        (["--paged_attention", "true"], "paged_attention", True),
        (["--token_accuracy", "True"], "token_accuracy", True),
        (["--batch_size", "16"], "batch_size", 16),
        (["--layers", "2"], "num_layers", 2),
        (["--num_layers", "3"], "num_layers", 3),
        (["--disable_trace"], "enable_trace", False),
        (["--enable_trace"], "enable_trace", True),
        (["--weights", "random"], "weights", "random"),
        (
            ["--page_params", '{"page_block_size": 64, "page_max_num_blocks_per_dp": 2048}'],
            "page_params",
            PageParams(64, 2048),
        ),
        (["--page_params", "{block_size: 64}"], "page_params", PageParams(64, 1024)),
        (["--page_params", "{block_size:64,max_num_blocks:9}"], "page_params", PageParams(64, 9)),
        (
            ["--sampling_params", "{'temperature': 0.7, 'top_p': 0.9, 'seed': 3}"],
            "sampling_params",
            SamplingParams(temperature=0.7, top_p=0.9, seed=3),
        ),
        (
            ["--optimizations", "precision_cfg = {ff1_3: bfp4}"],
            "optimizations",
            "precision_cfg = {ff1_3: bfp4}",
        ),
    ],
)
def test_an_override_is_typed_and_wins(words: list[str], field: str, value: object) -> None:
    assert getattr(apply_options(CASE, parse(*words)), field) == value


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--stop_at_eos", "maybe"], "use 1/true/yes/on or 0/false/no/off"),
        (["--batch_size", "many"], "use 1, 2, 4"),
        (["--batch_size", "0"], "use 1, 2, 4, 8, 16 or 32"),
        (["--batch_size", "12"], "the value is 12: use 1, 2, 4"),
        (["--mode", "fast"], "choose one of full, prefill, decode"),
        (["--weights", "good"], "choose one of instruct, random"),
        (["--page_params", "64"], "use a dict like"),
        (["--page_params", "{blocks: 64}"], "choose from block_size"),
        (["--page_params", "{block_size: 48}"], "use 32, 64 or 128"),
        (["--sampling_params", "{temprature: 1}"], "unknown sampling parameter temprature"),
        (["--decoder_config_file", "nowhere.json"], "there is no file 'nowhere.json'"),
    ],
)
def test_a_wrong_value_says_what_works(words: list[str], found: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=found) as error:
        parse(*words)
    assert words[0] in str(error.value)


def test_trace_cannot_be_on_and_off() -> None:
    with pytest.raises(ValueError, match="both given"):
        parse("--enable_trace", "--disable_trace")


def test_an_override_of_another_demo_is_refused_with_the_list_of_ours() -> None:
    with pytest.raises(ValueError, match=r"no --start_pos: its overrides are --input_prompts, "):
        apply_options(CASE, {"start_pos": 5})


def test_every_option_is_a_field_of_some_case() -> None:
    known = {
        field
        for case in (SIMPLE_CASES[0], GALAXY_CASES[0], DECODE_CASES[0])
        for field in vars(case)
    }
    assert {option.field for option in OPTIONS} <= known


def test_the_cases_are_the_published_ones() -> None:
    by_id = {case.id: case for case in SIMPLE_CASES}
    ci = by_id["ci-32"]
    assert (ci.max_seq_len, ci.batch_size, ci.max_generated_tokens) == (2048, 32, 1024)
    assert ci.page_params == PageParams(64, 1024)
    assert not ci.stop_at_eos
    assert by_id["long-context-64k"] == replace(by_id["long-context"], id="long-context-64k")
    assert by_id["DP-4-b32"].users == 128
    full = next(case for case in DECODE_CASES if case.id == "full")
    assert isinstance(full.sampling_params, SamplingParams)
    assert (full.max_generated_tokens, full.sampling_params.seed) == (2000, 42)
    assert cases.TSU_BANDS["6U"][80] == (68, 73)


def collect(demo: str, expression: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", f"demo/{demo}.py", "-k", expression]
    command += ["--collect-only", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("expression", "ids"),
    [
        ("performance and batch-1", ["performance-batch-1"]),
        ("accuracy and batch-32", ["accuracy-batch-32"]),
        ("performance and long-context", ["performance-long-context"]),
        ("performance and log-probs", ["performance-batch-32-log-probs"]),
    ],
)
def test_an_exact_id_selects_that_case_alone(expression: str, ids: list[str]) -> None:
    code, output = collect("simple_text_demo", expression)
    assert code == 0
    assert [line.split("[")[1].rstrip("]") for line in output.splitlines() if "::" in line] == ids


def test_an_unknown_id_fails_and_lists_the_known_ones() -> None:
    code, output = collect("simple_text_demo", "performance and batch-33")
    assert code != 0
    (line,) = [line for line in output.splitlines() if line.startswith("ERROR")]
    assert all(case.id in line for case in SIMPLE_CASES)
