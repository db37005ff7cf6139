"""What the C library does with its memory: tuned here alone, for converting and for computing.

Only glibc can be told; elsewhere nothing changes but the speed.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # mallopt's numbers
_MANY = 65536  # mappings, as many as glibc allows by itself
_MIB = 1 << 20
_ALL = (1 << 31) - 1

_lock = threading.Lock()
_state = {"keeps_all": False, "converting": 0}


def keep_all() -> None:
    """Keep all that is freed: most time of a large result goes into fresh pages."""
    with _lock:
        _state["keeps_all"] = True
        _apply()


@contextlib.contextmanager
def converting() -> Iterator[None]:
    """While weights are converted: keep up to 8 MiB, and map what is larger than 4 MiB.

    By itself glibc gives half a megabyte back to the kernel at every step, which makes rounding by
    temporaries three times slower, and later keeps whole weights, for each thread that had one.
    """
    with _lock:
        _state["converting"] += 1
        _apply()
    try:
        yield
    finally:
        with _lock:
            _state["converting"] -= 1
            if _state["keeps_all"]:
                _apply()


def grow_widely() -> None:
    """Let the heap grow by 64 MiB at a time, so that what is in use hardly ever reaches its end."""
    _tell(_TOP_PAD, 64 * _MIB)


def give_back() -> None:
    """Give whole free pages back once, for after a step that will not come again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _apply() -> None:
    if _state["converting"]:
        _tell(_MMAP_MAX, _MANY)
        _tell(_MMAP_THRESHOLD, 4 * _MIB)
        _tell(_TRIM_THRESHOLD, 8 * _MIB)
    else:
        _tell(_MMAP_MAX, 0)
        _tell(_TRIM_THRESHOLD, _ALL)


def _tell(setting: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(setting, value)
