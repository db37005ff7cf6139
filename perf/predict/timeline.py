"""A prediction as pictures: every op on a time axis, and time by op group.

The trace is in Chrome's JSON format, which ui.perfetto.dev and chrome://tracing open: one track
for prefill, one for a decode step. Ops that only repeat in further layers are drawn once per layer.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from perf.cost.constants import Constants
from perf.cost.price import op_time
from perf.cost.software import Software
from perf.cost.units import BESIDE, Situation
from perf.op_lists.kept import run_ops
from perf.op_lists.record import CountedOp, OpList, Workload
from perf.predict.figures import PhaseTimes, Prediction, gap_us, group_of, launched

MOST_LAYERS = 8  # of each kind that are drawn; more show nothing new


def trace_events(ops: OpList, state: Situation, track: int) -> list[dict[str, Any]]:
    """Complete events of an op list on one track; layers follow each other."""
    gap = gap_us(ops, state)
    events, now = [], 0.0
    for op, layer in _in_order([o for o in launched(ops) if o.record.name not in BESIDE]):
        time = op_time(op.record, state)
        scope = op.record.scope if layer is None else f"layer {layer} {_part(op)}"
        events.append(
            {
                "name": op.record.name,
                "cat": group_of(op.record),
                "ph": "X",
                "ts": round(now, 3),
                "dur": round(time.us, 3),
                "pid": 1,
                "tid": track,
                "args": {
                    "scope": scope,
                    "bound": time.bound,
                    "limit_us": round(time.limit_us, 3),
                    "inputs": [f"{t.dtype}{list(t.shape)} {t.buffer}" for t in op.record.inputs],
                    "outputs": [f"{t.dtype}{list(t.shape)} {t.buffer}" for t in op.record.outputs],
                },
            }
        )
        now += time.us + gap
    return events


def _part(op: CountedOp) -> str:
    return op.record.scope.rpartition(".")[2]


def _in_order(ops: list[CountedOp]) -> list[tuple[CountedOp, int | None]]:
    """Ops with the layers spelled out: runs of counted ops repeat as a whole."""
    ordered: list[tuple[CountedOp, int | None]] = []
    i, layer = 0, 0
    while i < len(ops):
        if ops[i].count == 1:
            ordered.append((ops[i], None))
            i += 1
            continue
        end = i
        while end < len(ops) and ops[end].count == ops[i].count:
            end += 1
        for _ in range(min(ops[i].count, MOST_LAYERS)):
            ordered += [(op, layer) for op in ops[i:end]]
            layer += 1
        i = end
    return ordered


def trace(workload: Workload, software: Software, constants: Constants) -> dict[str, Any]:
    """The whole document."""
    run = run_ops(workload)
    grid = min(run.mesh_shape) > 1
    state = Situation(
        run.spec(workload.spec), constants, software, workload.context, workload.batch_size, grid
    )
    names = {1: "decode step", 2: f"prefill of {run.prefill_users} user(s)"}
    title = f"{workload.model} on {workload.spec.name} (modelled)"
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": title}}
    ]
    for track, name in names.items():
        events.append(
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": {"name": name}}
        )
    events += trace_events(run.decode, state, 1)
    events += trace_events(run.prefill, replace(state, prefill=True), 2)
    note = f"modelled, not measured; at most {MOST_LAYERS} layers of a kind are drawn"
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"note": note}}


def write_trace(path: Path, trace: dict[str, Any]) -> None:
    """Write the trace to a file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(trace), encoding="utf-8")


def write_plot(path: Path, prediction: Prediction, title: str, trace: dict[str, Any]) -> None:
    """Draw time by op group, and the ops of one decode layer in order; the suffix is the format."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "one picture, one file"
    from matplotlib import pyplot

    figure, axes = pyplot.subplot_mosaic(
        [["decode", "prefill"], ["layer", "layer"]],
        figsize=(11, 5.6), height_ratios=(3, 1), layout="constrained",
    )  # fmt: skip
    parts: tuple[tuple[str, str, PhaseTimes], ...] = (
        ("decode", "decode step", prediction.decode),
        ("prefill", "prefill of a user", prediction.prefill),
    )
    colors = {group: f"C{i % 10}" for i, group in enumerate(prediction.decode.breakdown)}
    for key, name, phase in parts:
        axis = axes[key]
        shown = [(group, ms) for group, ms in phase.breakdown.items() if ms > 0.005 * phase.ms]
        labels, times = zip(*reversed(shown), strict=True)
        bars = axis.barh(labels, times, color=[colors.get(label, "0.6") for label in labels])
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axis.axvline(phase.limit_ms, color="#b03a2e", linestyle="--", linewidth=1)
        axis.set_title(f"{name}: {phase.ms:.1f} ms, physical limit {phase.limit_ms:.1f} ms")
        axis.set_xlabel("ms")
    _draw_layer(axes["layer"], trace, colors)
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title} (modelled)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _draw_layer(axis: Any, trace: dict[str, Any], colors: dict[str, str]) -> None:
    """The ops of the second decode layer on a time axis, long ones named."""
    ops = [
        event
        for event in trace["traceEvents"]
        if event.get("tid") == 1 and event.get("args", {}).get("scope", "").startswith("layer 1 ")
    ]
    begin = ops[0]["ts"]
    end = ops[-1]["ts"] + ops[-1]["dur"] - begin
    for event in ops:
        start = event["ts"] - begin
        axis.broken_barh([(start, event["dur"])], (0, 1), color=colors.get(event["cat"], "0.6"))
        if event["dur"] > 0.03 * end:
            label = event["name"].rsplit(".", 1)[-1].replace("scaled_dot_product_attention", "sdpa")
            axis.text(start + event["dur"] / 2, 1.1, label, rotation=20, fontsize=7)
    axis.set_title(f"one layer of a decode step, op by op: {end:.0f} us", pad=34)
    axis.set_xlabel("us")
    axis.set_yticks([])
    axis.set_ylim(0, 1.05)
