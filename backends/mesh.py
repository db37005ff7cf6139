"""Opening and closing a product's mesh, in one way for silicon, dry run and emulator.

Fabric before the mesh, dispatch cores with it, and everything closed again whatever happens.
Facts about products are in device_specs.py.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import backends
from backends.device_specs import SPECS, DeviceSpec

TRACE_REGION_BYTES = 50_000_000  # of DRAM, set aside for recorded commands


@contextmanager
def open_mesh(
    device: str,
    *,
    shape: tuple[int, int] | None = None,
    ring: bool = False,
    trace_region_size: int = TRACE_REGION_BYTES,
    worker_l1_size: int | None = None,
    wh_arch_yaml: str | None = None,
    from_column: bool = False,
) -> Iterator[Any]:
    """A MeshDevice of `device`, or of a smaller `shape` of it; closed at the end of the block.

    `ring` closes the axes that the product can close. `wh_arch_yaml` (WH_ARCH_YAML) chooses where
    commands are dispatched from, `from_column` a column of workers for it (the grid of
    DeviceSpec.from_column).
    """
    spec = spec_of(device)
    rows, cols = shape or spec.mesh_shape
    if ring and not any(spec.ring):
        closing = ", ".join(name for name, other in SPECS.items() if any(other.ring))
        raise ValueError(f"{device} cannot close a ring: use a line, or one of {closing}")
    ttnn, queues = backends.ttnn, 1
    if backends.selected() == "dry-run" and spec.column_grid:
        queues = 2  # of whom the overlay's descriptor tells the truth (dry_run/overlay.py)
    if backends.selected() == "emulator":
        ttnn.configure(device=device)  # it can be any product at any time
    else:  # meshes that cycles keep: TT-NN takes minutes to free their programs beside an open one
        gc.collect()
    arguments: dict[str, Any] = {}
    if dispatch_on_ethernet(spec, wh_arch_yaml):
        arguments["dispatch_core_config"] = ttnn.DispatchCoreConfig(ttnn.DispatchCoreType.ETH)
    elif from_column:
        arguments["dispatch_core_config"] = ttnn.DispatchCoreConfig(
            ttnn.DispatchCoreType.WORKER, ttnn.DispatchCoreAxis.COL
        )
    if worker_l1_size is not None:
        arguments["worker_l1_size"] = worker_l1_size
    fabric = rows * cols > 1
    if fabric:
        config = ttnn.FabricConfig
        ttnn.set_fabric_config(config.FABRIC_1D_RING if ring else config.FABRIC_1D)
    try:
        mesh = ttnn.open_mesh_device(
            ttnn.MeshShape(rows, cols),
            trace_region_size=trace_region_size,
            num_command_queues=queues,
            **arguments,
        )
        try:
            if from_column:
                _check_column(spec, mesh)
            yield mesh
        finally:
            for part in getattr(mesh, "get_submeshes", tuple)():
                ttnn.close_mesh_device(part)  # one left open keeps its chips, and the fabric
            ttnn.close_mesh_device(mesh)
    finally:
        if fabric:
            ttnn.set_fabric_config(ttnn.FabricConfig.DISABLED)


def _check_column(spec: DeviceSpec, mesh: Any) -> None:
    """Refuse chips with other cores: a core's place says which DRAM bank it is beside."""
    grid = mesh.compute_with_storage_grid_size()
    if (grid.x, grid.y) != spec.from_column().compute_grid:
        columns, rows = spec.from_column().compute_grid
        raise ValueError(
            f"{spec.name} was opened with {grid.x}x{grid.y} cores, but a model on a ring of cores "
            f"needs the {columns}x{rows} that dispatch from a column leaves: use chips with as "
            "many cores"
        )


class SplitCores:
    """Parts of every chip that run programs side by side, while they are loaded.

    Mock chips cannot load them (the wheel ends the process): there they are only checked, and all
    programs are taken to run on the whole chip.
    """

    def __init__(self, mesh: Any, parts: list[Any]) -> None:
        self.mesh = mesh
        ttnn = backends.ttnn
        self.manager = mesh.create_sub_device_manager([ttnn.SubDevice([part]) for part in parts], 0)

    def load(self) -> None:
        if backends.selected() != "dry-run":
            self.mesh.load_sub_device_manager(self.manager)

    def clear(self) -> None:
        """Back to one program at a time on the whole chip."""
        if backends.selected() != "dry-run":
            self.mesh.clear_loaded_sub_device_manager()


def spec_of(device: str) -> DeviceSpec:
    """Facts of a product by name."""
    if device not in SPECS:
        raise ValueError(f"unknown device {device!r}: choose one of {', '.join(SPECS)}")
    return SPECS[device]


def dispatch_on_ethernet(spec: DeviceSpec, wh_arch_yaml: str | None = None) -> bool:
    """Whether commands leave from ethernet cores, so that all rows of workers compute.

    n300 cards always do: our plans need their 8x8 grid. WH_ARCH_YAML may ask for it on n150.
    """
    if not wh_arch_yaml:
        return spec.eth_dispatch
    wanted = "eth_dispatch" in wh_arch_yaml
    if wanted and (spec.arch != "wormhole_b0" or spec.name == "TG"):
        raise ValueError(f"WH_ARCH_YAML={wh_arch_yaml} is not for {spec.name}: unset it")
    if spec.eth_dispatch and not wanted:
        raise ValueError(
            f"WH_ARCH_YAML={wh_arch_yaml} leaves {spec.name} an 8x7 grid, plans need 8x8: unset it "
            "or use wormhole_b0_80_arch_eth_dispatch.yaml"
        )
    return wanted


def split_mesh(mesh: Any, groups: int) -> list[Any]:
    """Equal parts of a mesh as 1 x N lines, for data parallelism; columns of a grid stay whole."""
    if groups == 1:
        return [mesh]
    ttnn = backends.ttnn
    rows, cols = tuple(mesh.shape)
    chips = rows * cols // groups
    if rows == 1 or cols % chips == 0:
        return list(mesh.create_submeshes(ttnn.MeshShape(1, chips)))
    height = min(rows, chips)
    parts = mesh.create_submeshes(ttnn.MeshShape(height, chips // height))
    for part in parts:
        part.reshape(ttnn.MeshShape(1, chips))
    return list(parts)
