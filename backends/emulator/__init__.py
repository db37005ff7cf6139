"""A look-alike of the ttnn module on torch: the same names, parameters, refusals and numbers.

`configure` chooses the product to emulate and where numbers live (cpu, cuda, or meta for none).
Read next: launch.py (how an op runs), ops/matmul.py (an op), chip/tensor.py (what it runs on).
"""

from __future__ import annotations

import importlib
import pkgutil
from types import SimpleNamespace
from typing import Any

from backends.emulator import ops as _ops
from backends.emulator import trace as _trace  # noqa: F401  registers its ops
from backends.emulator.api import configs as _configs
from backends.emulator.api import parts as _parts
from backends.emulator.api import system as _system
from backends.emulator.api import types as _types
from backends.emulator.api.types import DataType, Layout
from backends.emulator.chip.device import (
    MeshDevice,
    close_mesh_device,
    configure,
    get_memory_view,
    open_mesh_device,
    synchronize_device,
)
from backends.emulator.chip.tensor import Shape, StorageType, Tensor
from backends.emulator.launch import REGISTRY

__all__ = [
    "MeshDevice",
    "Shape",
    "StorageType",
    "Tensor",
    "close_mesh_device",
    "configure",
    "get_memory_view",
    "open_mesh_device",
    "synchronize_device",
]

bfloat16, bfloat8_b, bfloat4_b = DataType.BFLOAT16, DataType.BFLOAT8_B, DataType.BFLOAT4_B
float32, uint32, int32 = DataType.FLOAT32, DataType.UINT32, DataType.INT32
uint16, uint8 = DataType.UINT16, DataType.UINT8
TILE_LAYOUT, ROW_MAJOR_LAYOUT = Layout.TILE, Layout.ROW_MAJOR
TILE_SIZE = _types.TILE

experimental = SimpleNamespace()
transformer = SimpleNamespace()


def __getattr__(name: str) -> Any:
    """Types by name; whatever else is asked for is not part of the emulated surface."""
    if not name.startswith("_"):
        for module in (_types, _configs, _system, _parts):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"the emulator has no ttnn.{name}")


def _install() -> None:
    """Put every registered op in its place below ttnn."""
    for module in pkgutil.iter_modules(_ops.__path__):
        importlib.import_module(f"{_ops.__name__}.{module.name}")
    spaces = {"experimental": vars(experimental), "transformer": vars(transformer), "": globals()}
    for path, function in REGISTRY.items():
        space, _, name = path.rpartition(".")
        spaces[space][name] = function


_install()
