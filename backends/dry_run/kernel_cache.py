"""Keeps the stub kernels of earlier runs within a bound; the least recently used go first.

TT-Metal itself never deletes one. It writes a kernel's headers anew whenever a process uses it, so
the time of the kernel's folder is that of its last use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

# A kernel takes about 50 KiB of disk in up to 30 small files. Every model on every system needs
# about 6000.
MOST_KERNELS = 8000
KEPT_KERNELS = 7000  # after pruning, so that it does not happen at every start

_held: dict[Path, int] = {}  # open lock files, for the life of the process


def enter(cache: Path) -> None:
    """Prune the cache if no other process uses it, and hold it against pruning by others.

    A process that finds another one pruning waits for it; the lock ends with the process.
    """
    if cache in _held:
        return
    lock = os.open(cache / "in-use.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # in use: whoever comes when it is free will prune
    else:
        prune(cache / "kernels")
        shutil.rmtree(cache / "tmp", ignore_errors=True)  # left by processes that were killed
    fcntl.flock(lock, fcntl.LOCK_SH)
    _held[cache] = lock


def prune(kernels: Path) -> None:
    """Delete the least recently used kernels where there are more than MOST_KERNELS."""
    found = sorted(
        (folder.stat().st_mtime, folder.path)
        for build in _folders(kernels)
        for name in _folders(Path(build.path) / "kernels")
        for folder in _folders(name.path)
    )
    if len(found) > MOST_KERNELS:
        for _, path in found[: len(found) - KEPT_KERNELS]:
            shutil.rmtree(path, ignore_errors=True)


def _folders(parent: str | Path) -> list[os.DirEntry[str]]:
    """Folders directly inside `parent`; none where it does not exist."""
    try:
        return [entry for entry in os.scandir(parent) if entry.is_dir()]
    except FileNotFoundError:
        return []
