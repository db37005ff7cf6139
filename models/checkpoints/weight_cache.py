"""Keeps weights as they go to a device, so that the next start reads no checkpoint.

One directory per (checkpoint, mesh, code) holds one tensor file and one small record per weight.
Both are written under another name, forced to disk and renamed, the record last: whatever stops a
writer, a reader sees a whole weight or none. cache_place.py says where the directory is. A file's
size and samples are compared at every start, all of its bytes once per boot and when it changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger

from backends import ttnn
from backends.scratch import remove_abandoned, scratch_folder

_FORMAT = 2
_SAMPLES, _SAMPLE_BYTES = 16, 4096
_SUFFIX = ".tensorbin"  # what TT-NN calls its own files


class NoCache:
    """Converts every weight at every start."""

    def tensor(self, key: str, *, build: Callable[[], Any], put: Callable[[Any], Any]) -> Any:
        """What `put` makes of the weight on the host: its tensors on the device."""
        return put(build())

    def close(self) -> None:
        """Nothing to let go of."""


class WeightCache:
    """Weights of one fingerprint below `directory`; safe with other processes at work there."""

    def __init__(self, directory: str | Path, fingerprint: str) -> None:
        base = Path(directory).expanduser()
        self.directory = base / fingerprint
        self.hits = self.misses = 0
        self._lock: int | None = None
        self._writable = True
        for path in (base, self.directory):
            if path.is_symlink():
                raise ValueError(
                    f"weight cache {path} is a symbolic link: set TT_CACHE_PATH to "
                    f"{os.path.realpath(path)} itself, or remove the link"
                )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.directory / ".in-use", fcntl.LOCK_SH)
            remove_abandoned(base)
        except OSError as error:
            self._stop_writing(error)

    def tensor(self, key: str, *, build: Callable[[], Any], put: Callable[[Any], Any]) -> Any:
        """What `put` makes of the weight on the host, which `build` makes on a miss only."""
        host = self._load(key)
        if host is not None:
            self.hits += 1
        else:
            self.misses += 1
            host = build()
            if self.store(key, host) is not None:
                host = self._load(key) or host  # mapped: what was built need not stay in memory
        return put(host)

    def _load(self, key: str) -> Any:
        path = self.find(key)
        if path is None:
            return None
        try:
            return ttnn.load_tensor(path)
        except Exception as error:  # the wheel and safetensors have errors of their own
            logger.warning(
                f"weight cache: {path.name} cannot be loaded ({error}); building it again"
            )
            return None

    def find(self, key: str) -> Path | None:
        """The verified file of a weight, or None; a damaged one is reported and built again."""
        path, record_path = self._paths(key)
        for candidate in (path, record_path):
            if candidate.is_symlink():
                raise ValueError(
                    f"weight cache entry {candidate} is a symbolic link, which this cache never "
                    "writes: remove it"
                )
        try:
            record = json.loads(record_path.read_text())
            if record["format"] != _FORMAT or record["size"] != path.stat().st_size:
                raise ValueError("its size is not the recorded one")
            if record["samples"] != sample_digest(path) or not self._is_whole(path, record):
                raise ValueError("its content is not the recorded one")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning(f"weight cache: {path.name} is damaged ({error}); building it again")
            return None
        return path

    def _is_whole(self, path: Path, record: dict[str, Any]) -> bool:
        """Whether all bytes have the recorded checksum: once per boot, and after each change."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.with_suffix(".seen").read_text() == _state(path):
                return True
        if record["crc32"] != checksum(path):
            return False
        self._note_whole(path)
        return True

    def _note_whole(self, path: Path) -> None:
        if self._writable:
            with contextlib.suppress(OSError):
                path.with_suffix(".seen").write_text(_state(path))

    def store(self, key: str, host: Any) -> int | None:
        """Keep a host tensor: bytes written; on a full or read-only disk, warn and go on."""
        if not self._writable:
            return None
        try:
            with scratch_folder(self.directory.parent) as scratch:
                return self._write(scratch, key, host)
        except Exception as error:  # the wheel and safetensors have errors of their own
            self._stop_writing(error)
            return None

    def _write(self, scratch: Path, key: str, host: Any) -> int:
        path, record_path = self._paths(key)
        written, note = scratch / path.name, scratch / record_path.name
        ttnn.dump_tensor(written, host)
        _sync(written)
        size, samples = written.stat().st_size, sample_digest(written)
        record = {"format": _FORMAT, "size": size, "samples": samples, "crc32": checksum(written)}
        note.write_text(json.dumps(record))
        _sync(note)
        _replace(written, path)
        _replace(note, record_path)
        self._note_whole(path)  # its checksum was read from the disk
        return size

    def close(self) -> None:
        """Give up the lock; the end of the process does so too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> WeightCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _paths(self, key: str) -> tuple[Path, Path]:
        assert "/" not in key and not key.startswith("."), key
        return self.directory / f"{key}{_SUFFIX}", self.directory / f"{key}.json"

    def _stop_writing(self, error: Exception) -> None:
        self._writable = False
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        logger.warning(
            f"weight cache {self.directory}: {reason}; weights are converted at every start until "
            "this is mended or TT_CACHE_PATH names a better place"
        )


def sample_digest(path: Path) -> str:
    """Hash of blocks spread evenly over a file, first and last included; size-independent cost."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        last = max(0, os.fstat(stream.fileno()).st_size - _SAMPLE_BYTES)
        for index in range(_SAMPLES):
            stream.seek(last * index // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def checksum(path: Path) -> int:
    """CRC-32 of a whole file; finds any change that was not made to fool it."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            value = zlib.crc32(block, value)
    return value


@functools.cache
def _boot() -> str:
    """What names this run of the machine: files that were whole stay so until it ends."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()}"


def _state(path: Path) -> str:
    """What changes when the machine starts anew, or somebody writes to a file."""
    return f"{_boot()} {path.stat().st_mtime_ns}"


def remove_outdated(directory: Path, keep: str, prefix: str) -> None:
    """Delete caches beside `keep` that begin with `prefix` and that no process has open."""
    for path in Path(directory).glob(f"{prefix}*"):
        if path.name == keep or path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):
            lock = _lock(path / ".in-use", fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(path: Path, kind: int) -> int:
    """Open and lock a file; the kernel frees the lock when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(written: Path, path: Path) -> None:
    os.replace(written, path)
    _sync(path.parent)
