"""Compiles the C loops at their first use, keeps them beside Python's own bytecode, calls them.

What each computes stands beside its torch twin, which does the same, slower, where there is no C
compiler and `library()` is None.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
_THREADS = ("-fopenmp", "-fopenmp-simd")  # torch's own threads; or none, where there is no OpenMP
_COMPILE_S = 60
_WORTH_THREADS = 1 << 14  # values whose loop takes longer than waking a thread
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_LARGE_PAGE, _MADV_HUGEPAGE = 1 << 21, 14  # of Linux
_KEPT_BYTES = (1 << 31) - 1
LANES = 16  # the loops take widths that are a multiple of this


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where there is no compiler, or it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    texts = [path.read_text() for path in sorted(_SOURCES.glob("*.[ch]"))]
    folders = (_SOURCES / "__pycache__", None)
    for threads, folder in itertools.product(_THREADS, folders):
        command = (compiler, *_FLAGS, threads)
        key = "\0".join((*texts, *command, _processor()))
        name = f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
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
        handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
        try:
            sources = map(str, sorted(_SOURCES.glob("*.c")))
            whole = [*command, *sources, "-o", unfinished, "-lm"]
            subprocess.run(whole, check=True, capture_output=True, timeout=_COMPILE_S)
            os.replace(unfinished, path)
        finally:
            Path(unfinished).unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


@functools.cache
def keep_memory() -> None:
    """Have the C library keep what is freed: most time of a large tensor goes into fresh pages.

    Only glibc knows how; elsewhere nothing changes but the speed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def want_large_pages(fresh: torch.Tensor) -> None:
    """Have Linux give a large tensor's memory in pages of 2 MiB: 512 times fewer to wait for."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    first = -(-fresh.data_ptr() // _LARGE_PAGE) * _LARGE_PAGE
    size = (fresh.data_ptr() + fresh.nbytes - first) // _LARGE_PAGE * _LARGE_PAGE
    if madvise is not None and size > 0:
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_HUGEPAGE)


_C_TYPES = {int: ctypes.c_int64, float: ctypes.c_float}


@functools.cache
def _function(name: str, *kinds: type) -> Any:
    """A C function that takes tensors' addresses (or none), integers and floats."""
    function = getattr(library(), name)
    function.argtypes = [_C_TYPES.get(kind, ctypes.c_void_p) for kind in kinds]
    function.restype = ctypes.c_int64
    return function


def call(name: str, *arguments: torch.Tensor | int | float | None) -> int:
    """What the C function returns; meaningless for one that returns nothing."""
    function = _function(name, *map(type, arguments))
    return function(*[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments])


def threads_for(values: int) -> int:
    """Number of threads worth waking for a loop over a number of values."""
    return torch.get_num_threads() if values >= _WORTH_THREADS else 1


def can_run(*operands: torch.Tensor) -> bool:
    """Whether these tensors, in the types that the function takes, can be handed to C."""
    return library() is not None and all(
        tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in operands
    )
