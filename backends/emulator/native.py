"""The C loops of native.c, compiled at their first use and kept beside Python's own bytecode.

Without a C compiler `library()` is None and the torch code of the callers does the same, slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from backends.emulator.types import TILE

_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
_THREADS = ("-fopenmp", "-fopenmp-simd")  # torch's own threads; or none, where there is no OpenMP
_COMPILE_S = 60
_WORTH_THREADS = 1 << 14  # values whose loop takes longer than waking a thread
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_KEPT_BYTES = (1 << 31) - 1
LANES = 16  # the loops take widths that are a multiple of this
MOST_WIDTH, MOST_QUERIES = 256, 4  # of a head; at once


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where there is no compiler, or it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    folders = (_SOURCE.parent / "__pycache__", None)
    for threads, folder in itertools.product(_THREADS, folders):
        command = (compiler, *_FLAGS, threads)
        key = "\0".join((_SOURCE.read_text(), *command, _processor()))
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
            whole = [*command, str(_SOURCE), "-o", unfinished, "-lm"]
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


def _call(name: str, *arguments: torch.Tensor | int | float | None) -> None:
    converted = [
        ctypes.c_void_p(value.data_ptr())
        if isinstance(value, torch.Tensor)
        else ctypes.c_void_p(None)
        if value is None
        else ctypes.c_float(value)
        if isinstance(value, float)
        else ctypes.c_int64(value)
        for value in arguments
    ]
    getattr(library(), name)(*converted)


def _threads(values: int) -> int:
    """Threads to share out so many values to."""
    return torch.get_num_threads() if values >= _WORTH_THREADS else 1


def can_run(*operands: torch.Tensor) -> bool:
    """Whether these tensors, in the types that the function takes, can be handed to C."""
    return library() is not None and all(
        tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in operands
    )


def round_blocks(blocks: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """Blocks [N, 16] of bfloat16 or float32 rounded to so many bits, bfloat16."""
    out = torch.empty(blocks.shape, dtype=torch.bfloat16)
    name = "round_bfloat16" if blocks.dtype is torch.bfloat16 else "round_float32"
    _call(name, blocks, out, blocks.shape[0], mantissa_bits, _threads(blocks.numel()))
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """Rows [..., D] of bfloat16, D a multiple of 16, normalised; `weight` is float32 [D]."""
    width = x.shape[-1]
    out, rows = torch.empty_like(x), x.numel() // width
    _call("rms_norm", x, weight, out, rows, width, float(epsilon), _threads(x.numel()))
    return out


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, table_rows: int
) -> torch.Tensor | None:
    """Neighbouring columns of x [..., M, W] turned by tables [..., T, W], all bfloat16.

    Of the tables the first `table_rows` count: one for all of x's rows, or one for each. None
    where matrices share tables in another way than by leading dims of 1.
    """
    *_, rows, width = x.shape
    own = cos.shape[:-2]
    while own and own[0] == 1:
        own = own[1:]
    if own != x.shape[x.dim() - 2 - len(own) : -2]:
        return None
    out = torch.empty_like(x)
    _call(
        "rotate", x, cos, sin, out, x.numel() // (rows * width), rows, width, math.prod(own),
        cos.shape[-2], int(table_rows == rows > 1), _threads(x.numel()),
    )  # fmt: skip
    return out


def put_rows(table: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> None:
    """Rows [n, W] into a table [N, W] at places [n], all bfloat16."""
    _call("put_rows", table, places, rows, *rows.shape)


def sum_over(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Sum over a dim that is kept, in float32; by torch where the loop does not take x."""
    inner = math.prod(x.shape[dim + 1 :])
    if inner % LANES or x.dtype is not torch.bfloat16 or not can_run(x):
        return x.sum(dim, keepdim=True, dtype=torch.float32)
    out = torch.empty(*x.shape[:dim], 1, *x.shape[dim + 1 :])
    outer = out.numel() // inner
    _call("sum_places", x, out, outer, x.shape[dim], inner, _threads(x.numel()))
    return out


def spread_tiles(x: torch.Tensor, index: torch.Tensor, missing: int) -> torch.Tensor:
    """Tiles of columns of x [P, ..., n] where `index` wants them; `missing` more P are zero."""
    *_, width = x.shape
    out = x.new_empty(x.shape[0] + missing, *x.shape[1:-1], len(index) * TILE)
    _call(
        "spread_tiles", x, index, out, x.numel() // width, width // TILE,
        out.numel() // out.shape[-1], len(index), _threads(out.numel()),
    )  # fmt: skip
    return out


def attend(
    q: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    pages: torch.Tensor,
    hidden: torch.Tensor,
    idle: torch.Tensor | None,
    seen_bits: int,
) -> torch.Tensor:
    """Decode attention of scaled queries [U K, G, W], float32, over pages [U, K, P].

    `caches` are keys and values [..., size, W] of bfloat16 of which `seen_bits` significant bits
    count, `hidden` [U, 1, P size] says by -inf where a user does not look, `idle` who gets zeros.
    Result as q.
    """
    _, group, width = q.shape
    users, heads, count = pages.shape
    size = caches[0].shape[-2]
    mask = 0xFFFF & ~((1 << (8 - seen_bits)) - 1)
    threads = _threads(q.numel() * count)
    out, scores = torch.empty_like(q), q.new_empty(threads, MOST_QUERIES, count * size)
    _call(
        "attend", q, *caches, pages, hidden, idle, out, scores,
        users, heads, group, width, count, size, mask, threads,
    )  # fmt: skip
    return out
