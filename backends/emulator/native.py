"""The C loops of loops/, compiled at their first use and kept beside Python's own bytecode.

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
from typing import TYPE_CHECKING, Any

import torch

from backends.emulator.types import TILE

if TYPE_CHECKING:
    from backends.emulator.mesh_product import Tiles
    from backends.emulator.ops.paging import Reach

_SOURCES = Path(__file__).with_name("loops")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
_THREADS = ("-fopenmp", "-fopenmp-simd")  # torch's own threads; or none, where there is no OpenMP
_COMPILE_S = 60
_WORTH_THREADS = 1 << 14  # values whose loop takes longer than waking a thread
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_LARGE_PAGE, _MADV_HUGEPAGE = 1 << 21, 14  # of Linux
_KEPT_BYTES = (1 << 31) - 1
_PANEL = 240  # rows of a product that stay in a core's cache while weights pass
_ROWS_ANYWHERE = 16  # with more of them narrow vectors do worse than libraries
LANES = 16  # the loops take widths that are a multiple of this
MOST_WIDTH, MOST_QUERIES = 256, 4  # of a head; at once


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


def _want_large_pages(fresh: torch.Tensor) -> None:
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


def _call(name: str, *arguments: torch.Tensor | int | float | None) -> int:
    """What the C function returns; meaningless for one that returns nothing."""
    function = _function(name, *map(type, arguments))
    return function(*[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments])


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


def round_columns(columns: torch.Tensor, mantissa_bits: int) -> torch.Tensor | None:
    """Blocks down the columns [N, 16, W] as the host's conversion rounds them, bfloat16.

    None where it takes more care: odd types or widths, exponents near the ends of their range.
    """
    groups, _, width = columns.shape
    is_wide = columns.dtype is torch.float32
    if not (is_wide or columns.dtype is torch.bfloat16) or width % LANES or not can_run(columns):
        return None
    out = columns.new_empty(columns.shape, dtype=torch.bfloat16)
    _want_large_pages(out)
    done = _call(
        "round_columns", columns, out, groups, width, mantissa_bits, int(is_wide),
        _threads(columns.numel()),
    )  # fmt: skip
    return out if done else None


def sum_squares(x: torch.Tensor) -> torch.Tensor:
    """Sums of squares of rows [..., D] of bfloat16, D a multiple of 16, in tiles [..., 32]."""
    width = x.shape[-1]
    out = x.new_empty(*x.shape[:-1], TILE)
    _call("sum_squares", x, out, x.numel() // width, width, _threads(x.numel()))
    return out


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    sums: torch.Tensor | None,
    share: float,
    epsilon: float,
) -> torch.Tensor:
    """Rows [r, c, ..., D] of bfloat16, D a multiple of 16, normalised.

    `weight` is float32 [D] or [r, c, ..., D]; `sums` are those of squares, in tiles' first columns
    [..., 32 n], of x's mesh or of one place, of which `share` is the mean (None: the row's own).
    """
    width, chips = x.shape[-1], x.shape[0] * x.shape[1]
    rows = x.numel() // (chips * width)
    out = torch.empty_like(x)
    tiles = 0 if sums is None else sums.shape[-1] // TILE
    _call(
        "rms_norm", x, weight, sums, out, chips, rows, width, tiles,
        int(weight is not None and weight.numel() > width),
        int(sums is not None and sums.numel() > rows * tiles * TILE),
        float(share), float(epsilon), _threads(x.numel()),
    )  # fmt: skip
    return out


def silu_multiply(x: torch.Tensor, y: torch.Tensor, mantissa_bits: int) -> torch.Tensor:
    """silu(x) y of bfloat16 in whole blocks, rounded to bfloat16 or to so many bits a block."""
    out = torch.empty_like(x)
    threads = _threads(x.numel())
    _call("silu_multiply", x, y, out, x.numel() // LANES, mantissa_bits, threads)
    return out


def largest_first(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The k largest of rows [..., D] of bfloat16 and their places; None if one is no number."""
    values = x.new_empty(*x.shape[:-1], k)
    places = x.new_empty(values.shape, dtype=torch.int64)
    rows = values.numel() // k
    done = _call("largest_first", x, values, places, rows, x.shape[-1], k, _threads(x.numel()))
    return (values, places) if done else None


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


def all_equal(rows: torch.Tensor, pairs: torch.Tensor) -> bool:
    """Whether those of rows [*, n] that `pairs` [count, 2] names are the same, to the bit."""
    if not can_run(rows):
        return torch.equal(rows[pairs[:, 0]], rows[pairs[:, 1]])
    return bool(_call("all_equal", rows, pairs, len(pairs), rows.nbytes // len(rows)))


def put_rows(
    table: torch.Tensor,
    places: torch.Tensor,
    rows: torch.Tensor,
    kept: torch.Tensor | None,
    mantissa_bits: int,
) -> None:
    """Rows [n, W] (only `kept` ones) into a table [N, W] at places, all bfloat16.

    They are rounded to blocks of so many bits, if any.
    """
    count, width = len(places), rows.shape[1]
    threads = _threads(count * width)
    _call("put_rows", table, places, rows, kept, count, width, mantissa_bits, threads)


def put_pages(table: torch.Tensor, pages: torch.Tensor, x: torch.Tensor) -> None:
    """Prompts x [r, c, N, K, S, W], r and c the mesh's or 1, into a table [*, K, size, W].

    `pages` [R, C, N, S / size] says where each chip wants them; below zero: nowhere.
    """
    rows, cols, users, count = pages.shape
    own = torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2]).expand(rows, cols).contiguous()
    _call(
        "put_pages", table, pages, own, x, rows * cols, users, table.shape[1], count,
        table[0, 0].nbytes, _threads(x.numel()),
    )  # fmt: skip


def sum_over(
    x: torch.Tensor, axis: int, mantissa_bits: int, *, parts: int = 1
) -> torch.Tensor | None:
    """Sum of bfloat16 [r, c, ..., D] over a mesh axis, rounded to bfloat16 or to blocks of bits.

    The axis is kept with the columns dealt out to so many `parts`. None where the loop does not
    take x.
    """
    width = x.shape[-1]
    if width % (LANES * parts) or x.dtype is not torch.bfloat16 or not can_run(x):
        return None
    shape = (*x.shape[:axis], parts, *x.shape[axis + 1 : -1], width // parts)
    out, outer, places = x.new_empty(shape), math.prod(x.shape[:axis]), x.shape[axis]
    rows = x.numel() // (outer * places * width)
    _call(
        "sum_places", x, out, outer, places, rows, width, parts, mantissa_bits, _threads(x.numel())
    )  # fmt: skip
    return out


def can_multiply(x: torch.Tensor, rows: int) -> bool:
    """Whether products of x with so many rows are as fast here as any library's."""
    if library() is None or x.device.type != "cpu":
        return False
    return rows <= _ROWS_ANYWHERE or library().lanes() == LANES  # type: ignore[union-attr]


def multiply(
    x: torch.Tensor, tiles: Tiles, shape: tuple[int, ...], mantissa_bits: int, is_wide: bool
) -> torch.Tensor:
    """Rows x [places, M, K] of bfloat16 times a weight, as a result of this shape.

    Sums are rounded to bfloat16 (no `mantissa_bits`) or to blocks of so many bits.
    """
    x, out = x.contiguous(), x.new_empty(shape)
    _, rows, depth = x.shape
    _call(
        "multiply", x, tiles.weights, tiles.records, tiles.goals, out, len(tiles.records), rows,
        depth, shape[-1], mantissa_bits, int(is_wide), _PANEL, _threads(tiles.weights.numel()),
    )  # fmt: skip
    return out


def attend(
    q: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    seen: Reach,
    links: torch.Tensor,
    scale: float,
    q_bits: int,
    kv_bits: int,
) -> torch.Tensor:
    """Decode attention of queries [r, c, 1, B, H, W] over keys and values [..., size, W], bfloat16.

    Of either so many significant bits count. `seen` (paging.py) says where users look; `links`
    [2, chips] which chips' users see the same (alike.py). Result as q.
    """
    assert seen.rows is not None
    width, size, chips = q.shape[-1], caches[0].shape[-2], links.shape[1]
    users, heads, count = seen.rows.shape
    group = q.numel() // (users * heads * width)
    threads = _threads(q.numel() * count)
    out = torch.empty_like(q)
    scores = q.new_empty(threads, MOST_QUERIES, count * size, dtype=torch.float32)
    _call(
        "attend", q, *caches, seen.rows, seen.hidden, seen.idle, links, out, scores, chips,
        users // chips, heads, group, width, count, size, float(scale), _mask(q_bits),
        _mask(kv_bits), threads,
    )  # fmt: skip
    return out


def _mask(bits: int) -> int:
    """Of a bfloat16's bits those that a multiplier of so many significant bits sees."""
    return 0xFFFF & ~((1 << (8 - bits)) - 1)
