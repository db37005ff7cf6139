"""The real wheel on real chips. All that differs from the dry run is said here.

The wheel is imported as it is: its own kernels, compiler and caches, the chips it finds, traces
that are really captured. Opening a mesh, dispatch and fabric are shared (mesh.py).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from backends.device_specs import SPECS

DRIVER = Path("/dev/tenstorrent")


def load() -> Any:
    """The ttnn module."""
    if not DRIVER.exists():
        raise ValueError(
            f"backend 'silicon' needs a Tenstorrent device, but there is no {DRIVER}: load its "
            "driver, or use TT_BACKEND=emulator or dry-run"
        )
    try:
        return importlib.import_module("ttnn")
    except ImportError as error:
        raise ValueError(
            f"silicon needs the ttnn wheel (pip install ttnn==0.81.1): {error}; "
            "without a device use TT_BACKEND=emulator"
        ) from error


def detected_device() -> str:
    """The product whose chips this machine has; set MESH_DEVICE where several would fit."""
    ttnn = load()
    count, arch = ttnn.GetNumAvailableDevices(), ttnn.get_arch_name()
    for spec in SPECS.values():
        if spec.arch == arch and spec.num_chips == count:
            return spec.name
    raise ValueError(
        f"this machine shows {count} {arch} chips, which is no product known here: set MESH_DEVICE "
        f"to one of {', '.join(SPECS)}"
    )
