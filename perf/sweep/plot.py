"""The picture of a sweep: throughput against latency, and speed against context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perf.sweep.points import Point

MARKS = "osD^vP*X"


def draw(path: Path, points: Sequence[Point], title: str) -> None:
    """Write the picture; the suffix is the format."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "one picture, one file"
    from matplotlib import pyplot

    good = [p for p in points if not p.refused]
    figure, (front, reach) = pyplot.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    names = list(dict.fromkeys((p.device, p.optimizations, p.data_parallel) for p in good))
    colors = {name: f"C{i % 10}" for i, name in enumerate(names)}
    contexts = list(dict.fromkeys(p.context for p in good))
    _front(front, good, colors, contexts)
    _reach(reach, good, colors)
    for axis in (front, reach):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    handles = [
        pyplot.Line2D([], [], color=color, label=_label(name)) for name, color in colors.items()
    ]
    handles += [
        pyplot.Line2D([], [], color="0.4", marker=MARKS[i % len(MARKS)], linestyle="",
                      label=f"context {context}")
        for i, context in enumerate(contexts)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(f"{title} (modelled)")
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _label(name: tuple[str, str, int]) -> str:
    device, optimizations, groups = name
    return " ".join([device, optimizations, *([f"DP{groups}"] if groups > 1 else [])])


def _front(axis: Any, points: Sequence[Point], colors: Any, contexts: Sequence[int]) -> None:
    """Each line goes through the batches of a device at one context; rings mark the front."""
    for name, color in colors.items():
        for i, context in enumerate(contexts):
            own = [
                p for p in points
                if (p.device, p.optimizations, p.data_parallel) == name and p.context == context
            ]  # fmt: skip
            x = [p.tokens_per_s_per_user for p in own]
            y = [p.tokens_per_s for p in own]
            axis.plot(x, y, color=color, marker=MARKS[i % len(MARKS)], markersize=5, linewidth=1.2)
            for p in own:
                axis.annotate(str(p.batch), (p.tokens_per_s_per_user, p.tokens_per_s), fontsize=7,
                              textcoords="offset points", xytext=(4, 4))  # fmt: skip
    best = [p for p in points if p.on_front]
    axis.scatter([p.tokens_per_s_per_user for p in best], [p.tokens_per_s for p in best], s=110,
                 facecolors="none", edgecolors="0.3", linewidths=0.8)  # fmt: skip
    axis.set_yscale("log")
    axis.set_xlabel("tokens/s/user")
    axis.set_ylabel("tokens/s")
    axis.set_title("throughput against latency; numbers are batches, rings the front", fontsize=10)


def _reach(axis: Any, points: Sequence[Point], colors: Any) -> None:
    """Speed of the smallest batch over the context, with its 80 % interval."""
    smallest = min(p.batch for p in points)
    for name, color in colors.items():
        own = [
            p for p in points
            if (p.device, p.optimizations, p.data_parallel) == name and p.batch == smallest
        ]  # fmt: skip
        x = [p.context for p in own]
        axis.plot(x, [p.tokens_per_s_per_user for p in own], color=color, marker="o", markersize=4)
        axis.fill_between(x, [p.low for p in own], [p.high for p in own], color=color, alpha=0.12)
    axis.set_xscale("log", base=2)
    contexts = sorted({p.context for p in points})
    axis.set_xticks(contexts, [f"{c // 1024}K" if c % 1024 == 0 else str(c) for c in contexts])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("context, tokens")
    axis.set_ylabel("tokens/s/user")
    axis.set_title(f"speed by context at batch {smallest}; bands are 80 %", fontsize=10)
