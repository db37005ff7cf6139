"""Folders for unfinished files: gone when their maker is done, cleared by the next one if killed.

A maker holds a lock on its folder, which the kernel frees when it ends, however it ends. What is
done is renamed out of the folder, so that others see a whole thing or none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".making-"
_LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, for this maker alone; first clears what dead ones left there.

    OSError where `parent` cannot be written.
    """
    remove_abandoned(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def write_whole(path: Path, text: str) -> None:
    """Write a file, and its folder if need be, that others see whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent) as scratch:
        unfinished = scratch / path.name
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)


def remove_abandoned(parent: Path) -> None:
    """Delete the unfinished folders in `parent` whose makers are dead; others are left alone."""
    for folder in parent.glob(f"{PREFIX}*"):
        # no lock to be had: its maker is at work, or the file system knows none
        with contextlib.suppress(OSError):
            lock = _open_lock(folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and its lock, free of those who took it for abandoned before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX))
        try:
            lock = _open_lock(folder)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK)):
                return folder, lock
        os.close(lock)


def _open_lock(folder: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(folder / _LOCK, flags, 0o644)
