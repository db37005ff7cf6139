"""Where programs write: refused before the work whose result would find no place."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from models.fields import shown

PICTURES = (".png", ".svg", ".pdf")
_PROBE = bytes(2**16)  # more than any record


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """A reader of a file to write; for argparse's `type`."""

    def read(text: str) -> Path:
        try:
            path = Path(text)
            if suffixes and path.suffix not in suffixes:
                raise ValueError(f"{shown(text)} does not end in {' or '.join(suffixes)}")
            check_file(path)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return path

    return read


def output_folder(text: str) -> Path:
    """A folder to write into, which may not be there yet; for argparse's `type`."""
    try:
        folder = Path(text).expanduser()
        check_folder(folder)
    except (ValueError, RuntimeError) as error:  # ~nobody
        raise argparse.ArgumentTypeError(str(error)) from None
    return folder


def check_file(path: Path) -> None:
    """Refuse a file that could not be written, now and with some KiB."""
    try:
        if path.is_dir():
            raise ValueError(f"cannot write {shown(str(path), 200)}: it is a folder, name a file")
        if path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # waits for no reader of a pipe
        if path.is_file() or not path.exists():
            check_folder(path.parent)
    except OSError as error:
        raise ValueError(f"cannot write {shown(str(path), 200)}: {error.strerror}") from None


def check_folder(folder: Path) -> None:
    """Refuse a folder in which nothing could be written, or which could not be made."""
    try:
        there = next(part for part in (folder, *folder.parents) if part.exists())
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(_PROBE)
    except OSError as error:
        raise ValueError(f"cannot write into {shown(str(folder), 200)}: {error.strerror}") from None
