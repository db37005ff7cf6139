"""Makes the wheel believe in a system that is not there: environment, files, import.

Everything written goes below one cache directory; nothing is written to the wheel, the working
directory or /opt. A process is one system for its whole life.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from loguru import logger

from backends import allocator
from backends.dry_run import descriptors, kernel_cache, overlay, toolchain
from backends.scratch import write_whole

WHEEL_VERSION = "0.81.1"
PYTHON_VERSIONS = ((3, 10), (3, 12))  # the wheel is built for these
_OUR_SOURCES = (descriptors, overlay, toolchain)


def default_cache() -> Path:
    """Where overlays and stub kernels live: below the home directory, else the temporary one."""
    for parent in (Path.home() / ".cache", Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"):
        directory = parent / "tt-llm" / "dry_run"
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(directory, os.W_OK):
            return directory
    raise OSError("the dry run found no directory to write its cache to: give one with --cache_dir")


def unavailable() -> str | None:
    """Why the dry run cannot work here, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the dry run needs Linux on x86-64, this is {sys.platform} {platform.machine()}"
    if sys.version_info[:2] not in PYTHON_VERSIONS:
        return (
            "the dry run needs Python 3.10 or 3.12 (the ttnn wheel has no other), this is "
            f"{platform.python_version()}: use one of those, or TT_BACKEND=emulator"
        )
    try:
        found = importlib.metadata.version("ttnn")
    except importlib.metadata.PackageNotFoundError:
        return f"the dry run needs the ttnn wheel: pip install ttnn=={WHEEL_VERSION}"
    if found != WHEEL_VERSION:
        return f"the dry run needs ttnn=={WHEEL_VERSION}, found {found}: install that version"
    return None


def prepare(device: str, cache: Path) -> dict[str, str]:
    """Write what the wheel will read for `device`; returns the environment that points to it."""
    spec = importlib.util.find_spec("ttnn")
    assert spec is not None and spec.origin is not None
    wheel = Path(spec.origin).parent
    root = overlay.make_overlay(cache / f"overlay-{_version_key(wheel)}", wheel)
    cluster = cache / "clusters" / f"{device}-{_version_key(wheel)}.yaml"
    if not cluster.is_file():
        write_whole(cluster, json.dumps(descriptors.DESCRIPTORS[device]()))
    for name in ("kernels", f"logs/{device}"):
        (cache / name).mkdir(parents=True, exist_ok=True)
    return {
        "TT_METAL_RUNTIME_ROOT": str(root),
        "TT_METAL_MOCK_CLUSTER_DESC_PATH": str(cluster),
        "TT_METAL_CACHE": f"{cache / 'kernels'}/",
        "TT_METAL_LOGS_PATH": str(cache / "logs" / device),
        "TT_LOGGER_LEVEL": "off",  # every refusal would be printed to stdout as well
        "TT_METAL_DISABLE_BACKTRACE": "1",
    }


def import_wheel(device: str, cache: Path | None = None) -> Any:
    """The real ttnn module, driving mock chips of `device`."""
    reason = unavailable()
    if reason:
        raise RuntimeError(reason)
    if device not in descriptors.DESCRIPTORS:
        raise ValueError(
            f"unknown device {device!r}: choose one of {', '.join(descriptors.DESCRIPTORS)}"
        )
    if "ttnn" in sys.modules:
        raise RuntimeError(
            "ttnn was imported before the dry run could prepare it: select the backend first"
        )
    directory = (cache or default_cache()).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    kernel_cache.enter(directory)
    os.environ.update(prepare(device, directory))
    os.environ["TMPDIR"] = _scratch(directory)
    logger.disable("ttnn")  # notes about its own settings
    # the wheel's all_gather_concat copies up to 448 bytes from behind a list of cores: where the
    # heap ended there, that ended one process in 50
    allocator.grow_widely()
    return importlib.import_module("ttnn")


def _scratch(cache: Path) -> str:
    """Where this process's MPI (linked by the wheel) and torch leave folders; gone at exit."""
    parent = cache / "tmp"
    parent.mkdir(exist_ok=True)
    folder = tempfile.mkdtemp(dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _version_key(wheel: Path) -> str:
    """Changes with the wheel and with the code that writes files for it."""
    digest = hashlib.sha256(f"{wheel} {WHEEL_VERSION}".encode())
    for module in _OUR_SOURCES:
        assert module.__file__ is not None
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:12]
