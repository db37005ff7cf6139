"""What a user can get wrong is one clear line that says what would work, and a non-zero exit."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.cases import SIMPLE_CASES, Case, PageParams
from demo.conftest import is_our_refusal
from demo.flow import prepare
from runtime.settings import Settings
from tests.tiny_models import write_tiny

ROOT = Path(__file__).resolve().parents[2]
BATCH_1 = SIMPLE_CASES[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("llama-linear", tmp_path_factory.mktemp("models") / "tiny")


def settings_for(model: Path) -> Settings:
    return Settings.from_env({"TT_BACKEND": "emulator", "HF_MODEL": str(model)})


def pytest_demo(*words: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as a user does."""
    keep = {
        name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ
    }
    command = [sys.executable, "-m", "pytest", str(ROOT / "demo/simple_text_demo.py"), "-q"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *words],
        cwd=cwd,
        env={**keep, "TT_BACKEND": "emulator", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def error_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    output = (result.stdout + result.stderr).splitlines()
    return [line for line in output if line.startswith("error: ")]


PROMPTS = {
    "malformed": "[{",
    "empty list": "[]",
    "empty file": "",
    "wrong key": '[{"prompts": "x"}]',
}


@pytest.mark.parametrize("content", PROMPTS.values(), ids=PROMPTS.keys())
def test_a_defective_prompts_file(model: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="prompts.json") as error:
        prepare(replace(BATCH_1, input_prompts=str(path)), {}, settings_for(model))
    assert "\n" not in str(error.value)


def test_an_unknown_prompts_file_names_the_sets_there_are(model: Path) -> None:
    with pytest.raises(ValueError, match="input_data_long_64k"):
        prepare(replace(BATCH_1, input_prompts="nowhere.json"), {}, settings_for(model))


@pytest.mark.parametrize(
    ("changes", "given", "found"),
    [
        ({"max_seq_len": 64, "max_generated_tokens": 60}, {}, "do not fit max_seq_len 64: raise"),
        ({"max_seq_len": 8192}, {"max_seq_len": 8192}, "use at most 4096"),
        (
            {"page_params": PageParams(32, 4)},
            {},
            r"page budget is too small: 1 user must have \d+ blocks of 32 tokens, .* give 4",
        ),
        (
            {"batch_size": 32, "page_params": PageParams(32, 200)},
            {},
            "page budget is too small: 32 users must have",
        ),
        ({"max_generated_tokens": 5000}, {}, "leave no room for a prompt .* generate less"),
    ],
)
def test_what_cannot_fit_is_refused_before_weights_are_read(
    model: Path, changes: dict[str, Any], given: dict[str, Any], found: str
) -> None:
    with pytest.raises(ValueError, match=found) as error:
        prepare(replace(BATCH_1, **changes), given, settings_for(model))
    assert "\n" not in str(error.value)


def test_a_default_context_is_lowered_to_the_models(model: Path) -> None:
    job = prepare(replace(BATCH_1, max_seq_len=131072), {}, settings_for(model))
    assert job.case.max_seq_len == 4096


def test_a_case_that_needs_a_longer_context_is_skipped_and_says_how_to_run_it(model: Path) -> None:
    long = next(case for case in SIMPLE_CASES if case.id == "long-context")
    with pytest.raises(pytest.skip.Exception, match="--max_seq_len 4096"):
        prepare(long, {}, settings_for(model))
    shortened: Case = replace(long, max_seq_len=4096)
    job = prepare(shortened, {"max_seq_len": 4096}, settings_for(model))
    (request,) = job.requests[0]
    assert 3700 < len(request.prompt) <= 4096 - 200
    (prompt,) = job.prompts[0]
    assert prompt.answer is not None
    assert prompt.answer in prompt.text


def remove_weights(model: Path) -> None:
    for path in model.glob("*.safetensors"):
        path.unlink()


def truncate_weights(model: Path) -> None:
    path = next(model.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-5000])


def remove_everything(model: Path) -> None:
    shutil.rmtree(model)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (remove_weights, "safetensors"),
    "truncated weights": (truncate_weights, "safetensors"),
    "no directory": (remove_everything, "does not exist"),
}


@pytest.mark.parametrize(("damage", "found"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_weights_are_one_line_and_leave_no_cache(
    model: Path, tmp_path: Path, damage: Callable[[Path], None], found: str
) -> None:
    broken, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(model, broken)
    damage(broken)
    result = pytest_demo(
        "-k", "performance and batch-1", HF_MODEL=str(broken), TT_CACHE_PATH=str(cache)
    )
    assert result.returncode != 0
    (line,) = error_lines(result)
    assert found in line
    assert "Traceback" not in result.stdout
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("words", "environ", "found"),
    [
        ([], {"HF_MODEL": "a", "LLAMA_DIR": "/b"}, "HF_MODEL (a) and LLAMA_DIR (/b) are both set"),
        ([], {"MESH_DEVICE": "N151"}, "choose one of N150, N300"),
        (["--data_parallel", "3"], {}, "choose one of 1"),
        (["--optimizations", "fast"], {}, "performance"),
        (["--start_pos", "3"], {}, "this demo has no --start_pos"),
    ],
)
def test_a_wrong_choice_ends_the_demo_with_one_line(
    model: Path, words: list[str], environ: dict[str, str], found: str
) -> None:
    if "LLAMA_DIR" not in environ:
        environ = {"HF_MODEL": str(model), **environ}
    result = pytest_demo("-k", "performance and batch-1", *words, **environ)
    assert result.returncode == 1
    (line,) = error_lines(result)
    assert found in line
    assert "Traceback" not in result.stdout


def test_only_what_we_refuse_ourselves_loses_its_traceback() -> None:
    with pytest.raises(ValueError) as refusal:
        Settings.from_env({"MESH_DEVICE": "N151"})
    assert is_our_refusal(refusal)
    with pytest.raises(ValueError) as bug:
        int("x")
    assert not is_our_refusal(bug)
