"""The cache of stub kernels stays within its bound, and is left alone while others use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.dry_run import kernel_cache
from backends.dry_run.worker import ROOT

ENTER = "import sys; from pathlib import Path; from backends.dry_run import kernel_cache as cache; "
ENTER += "cache.MOST_KERNELS, cache.KEPT_KERNELS = 6, 4; cache.enter(Path(sys.argv[1])); "


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Ten kernels of two systems, kernel 0 used last, and what a killed process left."""
    for age in range(10):
        folder = tmp_path / "kernels" / f"build{age % 2}" / "kernels" / "reader" / str(age)
        (folder / "brisc").mkdir(parents=True)
        (folder / "brisc" / "brisc.elf").touch()
        os.utime(folder, (10_000 - age, 10_000 - age))
    (tmp_path / "tmp" / "left").mkdir(parents=True)
    return tmp_path


def _kernels(cache: Path) -> set[int]:
    return {int(folder.name) for folder in cache.glob("kernels/*/kernels/*/*")}


def _enter(cache: Path, then: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENTER + then, str(cache)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_least_recently_used_kernels_go_first(cache: Path) -> None:
    assert _enter(cache).wait(60) == 0
    assert _kernels(cache) == {0, 1, 2, 3}
    assert not (cache / "tmp").exists()


def test_a_cache_in_use_is_pruned_by_the_next_that_finds_it_free(cache: Path) -> None:
    kernel_cache.enter(cache)  # ten are within the bound of this process
    assert _enter(cache).wait(60) == 0
    assert _kernels(cache) == set(range(10))
    os.close(kernel_cache._held.pop(cache))
    with _enter(cache, "print('in', flush=True); sys.stdin.read()") as first:
        assert first.stdout is not None and first.stdout.readline() == "in\n"
        assert _kernels(cache) == {0, 1, 2, 3}
        assert _enter(cache).wait(60) == 0  # and two may be in at once
        first.communicate("")
