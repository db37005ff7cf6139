"""What an op was told, as scalars and strings for its record; configs are spread into fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from functools import lru_cache
from typing import Any

from backends.emulator.api.configs import ProgramConfig, WormholeComputeKernelConfig

_KERNEL_FIELDS = ("math_fidelity", "math_approx_mode", "fp32_dest_acc_en", "packer_l1_acc")


def describe(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that were given, spelled as the dry run spells them."""
    found: dict[str, Any] = {}
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, WormholeComputeKernelConfig):
            found.update(_kernel(value))
        elif isinstance(value, ProgramConfig):
            found[key] = type(value).__name__
            found.update(_program(id(value), value))
        else:
            found[key] = _plain(value)
    return found


@lru_cache(maxsize=256)
def _kernel(config: WormholeComputeKernelConfig) -> dict[str, Any]:
    return {name: _plain(getattr(config, name)) for name in _KERNEL_FIELDS}


class _Kept:
    """Fields of recent program configs by identity: hashing them costs more than listing them."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[ProgramConfig, dict[str, Any]]] = {}

    def __call__(self, key: int, config: ProgramConfig) -> dict[str, Any]:
        entry = self.found.get(key)
        if entry is None or entry[0] is not config:
            if len(self.found) > 1024:
                self.found.clear()
            values = {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]
            shown = {name: _plain(value) for name, value in values.items() if value is not None}
            entry = self.found[key] = (config, shown)
        return entry[1]


_program = _Kept()


def _plain(value: Any) -> Any:
    """Scalars as they are, enums by name, grids and lists as 8x4."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list | tuple):
        return "x".join(str(_plain(item)) for item in value)
    if hasattr(value, "x") and hasattr(value, "y"):
        return f"{value.x}x{value.y}"
    return str(value)
