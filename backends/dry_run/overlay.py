"""A runtime root for TT-Metal made of links to the wheel's, with the stand-in compiler added.

site-packages stays untouched. Two grids are corrected: since ttnn 0.77 programs for mock devices
are checked against the core grid of default dispatch (from a row of workers, by one command queue),
whatever the device was opened with. So the entry of two-row-harvested boards (N300, T3K) is given
the 8x8 grid of ethernet dispatch, and that of a Galaxy the 8x10 that its two ways of dispatch have
together; backends/mesh.py opens it with two queues here, whose entry says what is true.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from backends.dry_run.toolchain import write_toolchain
from backends.scratch import scratch_folder

_OWN_DIRECTORIES = ("runtime", "tt_metal")
_DESCRIPTOR = "wormhole_b0_80_arch.yaml"
# products whose dispatch runs on ethernet cores here, and their last worker core (x, y)
_ETHERNET_GRIDS = {"nebula_x1": (7, 7), "nebula_x2": (7, 7)}
_GRIDS_OF_ONE_QUEUE = {"galaxy": (7, 9)}


def make_overlay(directory: Path, wheel: Path) -> Path:
    """Create the overlay of the wheel's package directory once; safe if two processes do it."""
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(directory.parent) as scratch:
        building = scratch / directory.name
        _fill(building, wheel)
        try:
            os.rename(building, directory)
        except OSError:
            if not directory.is_dir():  # else another process was first
                raise
    return directory


def _fill(overlay: Path, wheel: Path) -> None:
    _link_all(wheel, overlay, except_for=_OWN_DIRECTORIES)
    _link_all(wheel / "runtime", overlay / "runtime", except_for=("sfpi",))
    _link_all(wheel / "tt_metal", overlay / "tt_metal", except_for=("core_descriptors",))
    descriptors = Path("tt_metal", "core_descriptors")
    _link_all(wheel / descriptors, overlay / descriptors, except_for=(_DESCRIPTOR,))
    original = (wheel / descriptors / _DESCRIPTOR).read_text()
    (overlay / descriptors / _DESCRIPTOR).write_text(with_checked_grids(original))
    write_toolchain(overlay / "runtime" / "sfpi")


def _link_all(source: Path, destination: Path, *, except_for: tuple[str, ...]) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        if entry.name not in except_for:
            (destination / entry.name).symlink_to(entry)


def with_checked_grids(descriptor: str) -> str:
    """The core descriptor with the worker grids that programs are checked against."""
    for product, (x, y) in (_ETHERNET_GRIDS | _GRIDS_OF_ONE_QUEUE).items():
        begin = descriptor.index(f"{product}:\n  row:")
        end = descriptor.index("  col:", begin)
        if product in _GRIDS_OF_ONE_QUEUE:
            end = descriptor.index("    2:", begin)
        rows = re.sub(
            r"(compute_with_storage_grid_range:[^\n]*\n\s*start: \[0, 0\]\n\s*end: )\[\d+, \d+\]",
            rf"\g<1>[{x}, {y}]",
            descriptor[begin:end],
        )
        descriptor = descriptor[:begin] + rows + descriptor[end:]
    return descriptor
