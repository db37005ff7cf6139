"""Dry run: the real ttnn wheel on mock chips; TT-NN itself validates every call without hardware.

Values are not computed (every read gives zeros); shapes, layouts, programs and memory are real.
Read next: environment.py (how the wheel is fooled), wrapped.py (what surrounds each call).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.dry_run.errors import DryRunError

__all__ = ["DryRunError", "load", "watch"]

_loaded: dict[str, Any] = {}


def load(device: str, cache_dir: Path | None = None) -> Any:
    """The ttnn namespace of a mocked system; one system per process.

    Files are written below `cache_dir` only (default ~/.cache/tt-llm/dry_run).
    """
    from backends.dry_run.environment import import_wheel
    from backends.dry_run.wrapped import Namespace, Watch

    if not _loaded:
        wheel = import_wheel(device, cache_dir)
        shared = Watch(wheel)
        _loaded.update(device=device, ttnn=Namespace(wheel, "", shared), watch=shared)
    elif _loaded["device"] != device:
        raise ValueError(
            f"this process is a dry run of {_loaded['device']}: start another for {device}"
        )
    return _loaded["ttnn"]


def watch() -> Any:
    """Memory marks, trace rules and call count of this process (wrapped.Watch)."""
    if not _loaded:
        raise RuntimeError("no dry run in this process: backends.select('dry-run', ...) first")
    return _loaded["watch"]
