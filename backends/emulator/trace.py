"""Traces: a recorded list of steps that replays on the same tensors.

As on silicon, nothing is computed while a trace is captured, host traffic inside is refused, and
replay reads whatever the input buffers hold then: a stale input shows.
"""

from __future__ import annotations

import itertools
from typing import Any

from backends.emulator.device import MeshDevice
from backends.emulator.launch import Step, fatal, op

_ids = itertools.count()


@op("begin_trace_capture")
def begin_trace_capture(mesh_device: MeshDevice, *, cq_id: int | None = None) -> int:
    if mesh_device.capturing is not None:
        fatal("a trace is being captured already")
    mesh_device.capturing = []
    return next(_ids)


@op("end_trace_capture")
def end_trace_capture(mesh_device: MeshDevice, trace_id: int, *, cq_id: int | None = None) -> None:
    steps: list[Step] = mesh_device.capturing
    mesh_device.capturing = None
    mesh_device.traces[trace_id] = steps


@op("execute_trace")
def execute_trace(
    mesh_device: MeshDevice, trace_id: int, *, cq_id: int | None = None, blocking: bool = True
) -> None:
    if trace_id not in mesh_device.traces:
        fatal(f"no trace {trace_id} on this device: it was released or never captured")
    for step in mesh_device.traces[trace_id]:
        step.run()


@op("release_trace")
def release_trace(mesh_device: MeshDevice, trace_id: int) -> None:
    mesh_device.traces.pop(trace_id, None)


def refuse_during_capture(device: Any, what: str) -> None:
    """Host traffic cannot be part of a trace."""
    if device is not None and device.capturing is not None:
        fatal(f"{what} are not supported during trace capture.")
