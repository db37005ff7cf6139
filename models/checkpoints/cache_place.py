"""Where a model's weight cache lies and what it is called; weight_cache.py reads and writes it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from backends import selected, ttnn
from models.checkpoints.base import Checkpoint
from models.checkpoints.open import Location
from models.checkpoints.weight_cache import WeightCache, remove_outdated

ROOT = Path(__file__).resolve().parents[2]
# Code that decides the bytes of a cached weight: a change to it must not meet old files. All that
# a model is, and in the emulator how it rounds and writes: nobody has to remember a list.
_CODE = ("models/**/*.py",)
_EMULATOR_CODE = ("backends/emulator/**/*.py", "backends/emulator/**/*.[ch]")


def cache_directory(
    location: Location, device: str, *, tt_cache_path: str | Path | None = None
) -> Path:
    """TT_CACHE_PATH/<device>, else beside the weights, else model_cache/<hub name>/<device>."""
    if tt_cache_path:
        return Path(tt_cache_path).expanduser() / device
    if location.is_path:
        folder = location.path if location.path.is_dir() else location.path.parent
        return folder / device
    if location.given == "default":
        return location.path.parent / device  # the model itself lies in model_cache
    return ROOT / "model_cache" / location.given / device


def cache_fingerprint(checkpoint: Checkpoint, mesh_shape: tuple[int, int], padding: object) -> str:
    """Name of one cache: mesh, padding, checkpoint, and the code that arranged the weights.

    The precision is not part of it: keys name the dtype, so presets share what they have in common.
    """
    return f"{_prefix(checkpoint, mesh_shape, padding)}{_code_digest()}"


def open_weight_cache(
    checkpoint: Checkpoint,
    location: Location,
    device: str,
    mesh_shape: tuple[int, int],
    *,
    padding: object = None,
    tt_cache_path: str | Path | None = None,
) -> WeightCache:
    """The cache of a checkpoint on a mesh; caches that older code left beside it are removed."""
    directory = cache_directory(location, device, tt_cache_path=tt_cache_path)
    fingerprint = cache_fingerprint(checkpoint, mesh_shape, padding)
    cache = WeightCache(directory, fingerprint)
    remove_outdated(directory, fingerprint, _prefix(checkpoint, mesh_shape, padding))
    return cache


def _prefix(checkpoint: Checkpoint, mesh_shape: tuple[int, int], padding: object) -> str:
    assert ttnn is not None  # the first use selects the backend; each has files of its own
    rows, columns = mesh_shape
    padded = "" if padding is None else f"-padded{padding}"
    return f"{rows}x{columns}{padded}-{selected()}-{checkpoint.fingerprint[:16]}-"


def _code_digest() -> str:
    version = getattr(ttnn, "__version__", "")
    digest = hashlib.sha256(f"{selected()}/{version}/{torch.__version__}".encode())
    for pattern in _CODE + (_EMULATOR_CODE if selected() == "emulator" else ()):
        for file in sorted(ROOT.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
