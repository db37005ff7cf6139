"""scripts/setup.sh with nothing to install: what it makes, skips, refuses and starts over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup.sh"


def make_project(folder: Path) -> Path:
    """A folder like the repository, whose requirements ask for nothing."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts")
    for name in ("requirements.txt", "requirements-dev.txt"):
        (folder / name).touch()
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project after its first set-up, and what that printed; copied, never changed."""
    project = make_project(tmp_path_factory.mktemp("setup") / "project")
    code, text = run(project, "--dev")
    assert code == 0, text
    return project, text


@pytest.fixture
def project(first: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the set-up project; its environment works where it lies."""
    return Path(shutil.copytree(first[0], tmp_path / "project", symlinks=True))


def run(project: Path, *words: str, python: str = sys.executable) -> tuple[int, str]:
    """Exit code and everything printed."""
    result = subprocess.run(
        ["bash", "scripts/setup.sh", *words],
        cwd=project,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHON": python},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout


def test_a_second_set_up_does_nothing_and_a_changed_file_installs_again(
    first: tuple[Path, str], project: Path
) -> None:
    assert "making .venv" in first[1]
    assert run(project, "--dev") == (0, "")
    assert run(project) == (0, "")  # what running needs is part of what testing needs
    (project / "requirements.txt").write_text("# changed\n")
    code, text = run(project)
    assert code == 0 and "installing requirements.txt" in text and "making" not in text


def test_an_environment_that_was_cut_short_is_made_anew(project: Path) -> None:
    relic = project / ".venv" / "relic"
    relic.touch()
    (project / ".venv" / "unfinished").touch()
    code, text = run(project)
    assert code == 0 and "cut short" in text
    assert not relic.exists() and not list(project.glob(".venv.old*"))


def test_a_failed_installation_is_not_taken_for_a_finished_one(project: Path) -> None:
    (project / "requirements.txt").write_text("./no-such-package\n")
    code, text = run(project)
    assert code == 1 and "error: pip could not install" in text
    (project / "requirements.txt").write_text("")
    code, text = run(project)
    assert code == 0 and "cut short" in text
    assert not (project / ".venv" / "unfinished").exists()


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_a_useless_python_is_one_line_and_leaves_the_environment(
    project: Path, python: str
) -> None:
    code, text = run(project, python=python)
    assert code == 1 and text.count("\n") == 1
    assert f"PYTHON={python}" in text and "3.10 to 3.13" in text
    assert (project / ".venv" / "installed").exists()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    (project / ".venv").mkdir()
    (project / ".venv" / "mine").touch()
    code, text = run(project)
    assert code == 1 and "not a virtual environment" in text
    assert (project / ".venv" / "mine").exists()
