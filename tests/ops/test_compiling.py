"""The C loops compile here and elsewhere, at once and with checks, and nobody needs a compiler."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backends.emulator.loops import native

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here")
ROOT = Path(__file__).resolve().parents[2]


def test_a_compiler_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.library.__wrapped__() is None
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    assert native.library.__wrapped__() is None


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these processors are x86-64")
@pytest.mark.parametrize("processor", ["skylake-avx512", "cooperlake", "sapphirerapids"])
def test_loops_compile_for_processors_that_are_not_here(processor: str) -> None:
    command = ["cc", "-fsyntax-only", f"-march={processor}"]
    if subprocess.run([*command, "-xc", os.devnull], capture_output=True).returncode:
        pytest.skip(f"this compiler does not know {processor}")
    sources = map(str, native._SOURCES.glob("*.c"))
    done = subprocess.run([*command, *sources], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]


@needs_compiler
def test_processes_that_compile_at_once_all_get_the_library(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from backends.emulator.loops import native; "
        f"native._SOURCES = pathlib.Path({str(tmp_path)!r}); native._FLAGS += ('-O0',); "
        "sys.exit(native.library() is None)"
    )
    for path in native._SOURCES.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    jobs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [job.wait(timeout=60) for job in jobs] == [0, 0]
    assert len(list((tmp_path / "__pycache__").iterdir())) == 1


@needs_compiler
def test_no_loop_goes_beyond_its_operands_or_what_c_defines() -> None:
    runtime = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("the compiler has no address sanitizer")
    code = (
        "import sys, pytest; from backends.emulator.loops import native; "
        "native._FLAGS += ('-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover'); "
        "assert native.library() is not None; "
        "sys.exit(pytest.main(['-qxs', '-p', 'no:cacheprovider', 'tests/ops/test_native.py', "
        "'tests/ops/test_tiles.py', "
        "'-k', 'not AVX2 and not plain']))"
    )
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
