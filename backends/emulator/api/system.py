"""Names around a mesh of chips: its shape, places on it, architectures, wiring, dispatch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from backends.emulator.api.types import Name


class Arch(Name):
    WORMHOLE_B0 = 1
    BLACKHOLE = 2


class FabricConfig(Name):
    """How chips are wired for collectives; every wiring is available here."""

    DISABLED = 0
    FABRIC_1D = 2
    FABRIC_1D_RING = 3
    FABRIC_2D = 4


class DispatchCoreType(Name):
    WORKER = 0
    ETH = 1


class DispatchCoreAxis(Name):
    ROW = 0
    COL = 1


@dataclass(frozen=True)
class DispatchCoreConfig:
    """Which cores send commands; grids here are as the product is opened (device_specs.py)."""

    type: DispatchCoreType = DispatchCoreType.WORKER
    axis: DispatchCoreAxis = DispatchCoreAxis.ROW


def set_fabric_config(config: FabricConfig, *args: Any, **kwargs: Any) -> None:
    """Nothing to wire."""


def record_event(mesh_device: Any, cq_id: int | None = None) -> None:
    """Everything is done in order, so what was asked for before is done."""


def event_synchronize(mesh_event: Any) -> None:
    """Nothing to wait for."""


class MeshShape:
    """Rows and columns of a mesh, given one by one or as a sequence."""

    def __init__(self, *dims: Any) -> None:
        single = len(dims) == 1 and not isinstance(dims[0], int)
        self.dims: tuple[int, ...] = tuple(dims[0]) if single else dims

    def __iter__(self) -> Iterator[int]:
        return iter(self.dims)

    def __getitem__(self, index: int) -> int:
        return self.dims[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MeshShape) and other.dims == self.dims

    def __hash__(self) -> int:
        return hash(self.dims)

    def __repr__(self) -> str:
        return f"MeshShape({list(self.dims)})"

    def mesh_size(self) -> int:
        return math.prod(self.dims)
