"""The real wheel on real chips. All that differs from the dry run is said here.

The wheel is imported as it is: its own kernels, compiler and caches, the chips it finds, traces
that are really captured. Opening a mesh, dispatch and fabric are shared (mesh.py).
"""

from __future__ import annotations

import importlib
from typing import Any


def load() -> Any:
    """The ttnn module."""
    try:
        return importlib.import_module("ttnn")
    except ImportError as error:
        raise ImportError(
            f"silicon needs the ttnn wheel (pip install ttnn==0.81.1): {error}; "
            "without a device use TT_BACKEND=emulator"
        ) from error
