"""The one door to TT-NN: `from backends import ttnn` is the wheel, its dry run, or our emulator.

Selection happens once, before models are imported. Nothing here reads the environment
(runtime/settings.py does). Next: mesh.py opens devices, emulator/ is the look-alike.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from backends import threads  # before torch: how threads wait is settled there

BACKENDS = ("silicon", "dry-run", "emulator")
_selected: tuple[str, str] | None = None
_module: Any = None


def default_backend() -> str:
    """Silicon where the driver's device node exists, else the emulator."""
    return "silicon" if Path("/dev/tenstorrent").exists() else "emulator"


def select(backend: str | None = None, device: str = "N150") -> str:
    """Choose the backend (and the system it runs as); a second, different choice is an error."""
    global _selected, _module
    backend = backend or default_backend()
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if _selected is not None:
        # one process drives one mocked system; the emulator can be any device at any time
        same = _selected[0] == backend and (backend != "dry-run" or _selected[1] == device)
        if not same:
            raise ValueError(
                f"backend {backend!r} for {device} was asked for, but this process already runs "
                f"{_selected[0]!r} for {_selected[1]}: start a new process"
            )
        return backend
    if backend == "emulator":
        _module = importlib.import_module("backends.emulator")
    elif backend == "dry-run":
        _module = importlib.import_module("backends.dry_run").load(device)
    else:
        _module = importlib.import_module("backends.silicon").load()
    _selected = (backend, device)
    return backend


def selected() -> str | None:
    """Name of the backend in use, or None before the first use."""
    return _selected[0] if _selected else None


def repeatable() -> AbstractContextManager[None]:
    """While it lasts, no measurement of speed decides in which order the emulator sums."""
    if selected() != "emulator":
        return nullcontext()
    return importlib.import_module("backends.emulator.numerics.kernels").fixed()  # type: ignore[no-any-return]


def configure_emulator(*, torch_device: str = "cpu", num_threads: int | None = None) -> None:
    """Where the emulator's numbers live, and by how many threads; other backends do not care.

    Without a number it takes the cores that the process may use.
    """
    if selected() == "emulator":
        count = num_threads or threads.usable_cores()
        _module.configure(torch_device=torch_device, threads=count)


def __getattr__(name: str) -> Any:
    if name == "ttnn":
        if _module is None:
            select()
        return _module
    raise AttributeError(f"module 'backends' has no attribute {name!r}")
