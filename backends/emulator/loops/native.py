"""Compiles the C loops at their first use and keeps them beside Python's own bytecode.

What each computes stands beside its torch twin, which does the same, slower, where there is no C
compiler and `library()` is None. Next: call.py for how they are called.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from loguru import logger

from backends.scratch import scratch_folder

_SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
_PROCESSOR = "-march=native"
_COMPILE_S = 600  # takes seconds, on a machine that does much else a minute
_LARGE_PAGE, _MADV_HUGEPAGE = 1 << 21, 14  # of Linux


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loops for this processor; None where there is no compiler, or it fails."""
    loops = compiled(_PROCESSOR)
    if loops is None and _compiler() is not None:
        logger.warning(f"{_compiler()} did not compile the emulator's loops: it is slower without")
    return loops


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compiled(*flags: str) -> ctypes.CDLL | None:
    """The loops compiled with more flags, those of a processor among them."""
    compiler = _compiler()
    if compiler is None:
        return None
    texts = [path.read_text() for path in sorted(_SOURCES.glob("*.[ch]"))]
    command = (compiler, *_FLAGS, *flags)
    key = "\0".join((*texts, *command, _processor()))
    name = f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    for folder in (_SOURCES / "__pycache__", None):
        try:
            if folder is None:  # a read-only installation: for this process alone
                with tempfile.TemporaryDirectory() as own:
                    return _build(command, Path(own) / name)
            folder.mkdir(exist_ok=True)
            return _build(command, folder / name)
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _build(command: Sequence[str], path: Path) -> ctypes.CDLL:
    """Compile unless done before; complete or not there, also for two processes at once."""
    if not path.exists():
        with scratch_folder(path.parent) as scratch:
            unfinished = scratch / path.name
            sources = map(str, sorted(_SOURCES.glob("*.c")))
            whole = [*command, *sources, "-o", str(unfinished), "-lm"]
            subprocess.run(whole, check=True, capture_output=True, timeout=_COMPILE_S)
            os.replace(unfinished, path)
    return ctypes.CDLL(str(path))


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def products() -> str:
    """What sums products in the loops: the order of sums, so their last digits, hangs on it."""
    found = library()
    assert found is not None
    found.products.restype = ctypes.c_char_p
    name: bytes = found.products()
    return name.decode()


def want_large_pages(fresh: torch.Tensor) -> None:
    """Have Linux give a large tensor's memory in pages of 2 MiB: 512 times fewer to wait for."""
    _advise(fresh, _LARGE_PAGE, _MADV_HUGEPAGE)


def _advise(tensor: torch.Tensor, page: int, advice: int) -> None:
    """Tell Linux about the whole pages of a contiguous tensor; others do not know the advice."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    first = -(-tensor.data_ptr() // page) * page
    size = (tensor.data_ptr() + tensor.nbytes - first) // page * page
    if madvise is not None and size > 0 and sys.platform == "linux":
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), advice)
