"""Accuracy against speed: the points of a comparison, their front, and its plots and tables.

A point is on the front if nothing is both faster and at least as accurate. Plots say where the
figures come from; nothing here runs anything.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lt.jobs import Job, Status

PROVENANCE = {
    "measured": "measured on silicon",
    "modelled": "modelled by perf.predict",
    "host": "wall clock of the emulator",
}


@dataclass(frozen=True)
class Point:
    """One setting's figures."""

    optimizations: str
    speed: float  # tokens/s/user
    top1: float
    top5: float
    provenance: str  # of the speed
    ttft_ms: float | None = None

    @property
    def label(self) -> str:
        """The setting in a few words: a preset, a file, or the formats of a text."""
        if "=" not in self.optimizations:
            return Path(self.optimizations).stem
        body = self.optimizations.partition("{")[2].partition("}")[0]
        pairs = [part.split(":") for part in body.split(",")]
        return " ".join(f"{key.strip()}:{value.strip()}" for key, value in pairs)


def points_of(jobs: Iterable[Job]) -> list[Point]:
    """Accuracy of each setting joined with its speed: measured if there is one, else modelled."""
    accuracy: dict[str, Job] = {}
    speed: dict[str, Job] = {}
    for job in jobs:
        if job.status is not Status.FINISHED or not job.plan.optimizations:
            continue
        if job.result.top1 is not None:
            accuracy[job.plan.optimizations] = job
        elif job.result.speed is not None and job.result.provenance != "host":
            known = speed.get(job.plan.optimizations)
            if known is None or known.result.provenance != "measured":
                speed[job.plan.optimizations] = job
    points = []
    for setting, job in accuracy.items():
        if setting not in speed:
            continue
        figures, found = speed[setting].result, job.result
        assert figures.speed is not None and found.top1 is not None and found.top5 is not None
        points.append(
            Point(setting, figures.speed, found.top1, found.top5, figures.provenance,
                  figures.ttft_ms)
        )  # fmt: skip
    return points


def front(points: Sequence[Point]) -> list[Point]:
    """Points that nothing beats, fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speed, -p.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


def beats(one: Point, other: Point) -> bool:
    """At least as fast and as accurate, and better in one of them."""
    at_least = one.speed >= other.speed and one.top1 >= other.top1
    return at_least and (one.speed, one.top1) != (other.speed, other.top1)


def title_of(model: str, device: str, points: Sequence[Point]) -> str:
    """What a plot shows and where its figures come from."""
    sources = sorted({PROVENANCE[point.provenance] for point in points})
    return (
        f"{model} on {device}\naccuracy: teacher forcing against Hugging Face float32\n"
        f"speed: {', '.join(sources)}"
    )


def save_plot(path: Path, points: Sequence[Point], model: str, device: str) -> None:
    """PNG or SVG by the path's suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    best = front(points)
    axes.plot([p.speed for p in best], [p.top1 for p in best], "-", color="tab:red", label="front")
    for number, point in enumerate(points, start=1):
        color = "tab:red" if point in best else "tab:blue"
        axes.plot(point.speed, point.top1, "o", color=color)
        axes.annotate(
            str(number), (point.speed, point.top1), xytext=(4, 4), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip
    axes.set(xlabel="tokens/s/user", ylabel="top-1 (%)", title=title_of(model, device, points))
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    key = "\n".join(f"{i:>2}  {point.label}" for i, point in enumerate(points, start=1))
    figure.text(1.02, 0.5, key, fontsize=7, family="monospace", va="center")
    figure.savefig(path, bbox_inches="tight", dpi=120)


def text_plot(points: Sequence[Point], width: int = 76, height: int = 16) -> str:
    """The same for a terminal: numbers are points, those of the front in brackets."""
    if not points:
        return "no points"
    best, columns, rows = front(points), max(10, width - 12), max(3, height - 2)
    speeds, tops = [p.speed for p in points], [p.top1 for p in points]
    grid = [[" "] * columns for _ in range(rows)]

    def place(value: float, values: list[float], cells: int) -> int:
        low, high = min(values), max(values)
        return round((value - low) / (high - low) * (cells - 1)) if high > low else 0

    for number, point in enumerate(points, start=1):
        mark = f"[{number}]" if point in best else str(number)
        row = rows - 1 - place(point.top1, tops, rows)
        column = min(place(point.speed, speeds, columns), columns - len(mark))
        grid[row][column : column + len(mark)] = mark
    lines = []
    for index, cells in enumerate(grid):
        value = max(tops) - (max(tops) - min(tops)) * index / max(1, rows - 1)
        lines.append(f"{value:7.2f} % |{''.join(cells)}".rstrip())
    lines.append(f"{'':9} +{'-' * columns}")
    ends = f"{min(speeds):.1f}", f"{max(speeds):.1f} t/s/u"
    lines.append(f"{'':11}{ends[0]}{ends[1]:>{columns - len(ends[0])}}")
    return "\n".join(lines)


def table(points: Sequence[Point]) -> str:
    """Markdown of all points; * marks the front."""
    best = front(points)
    lines = [
        "|  # | front | Top-1 (%) | Top-5 (%) | Speed (t/s/u) | TTFT (ms) | speed is | setting |",
        "|---:|:-----:|----------:|----------:|--------------:|----------:|----------|---------|",
    ]
    for number, point in enumerate(points, start=1):
        ttft = "" if point.ttft_ms is None else f"{point.ttft_ms:.1f}"
        lines.append(
            f"| {number} | {'*' if point in best else ''} | {point.top1:.2f} | {point.top5:.2f} "
            f"| {point.speed:.1f} | {ttft} | {point.provenance} | `{point.optimizations}` |"
        )
    return "\n".join(lines)


def save_all(folder: Path, points: Sequence[Point], model: str, device: str) -> list[Path]:
    """Plot as PNG and SVG, points as CSV and JSON, table as markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / f"{model}_{device}_pareto"
    paths = [base.with_name(f"{base.name}.{kind}") for kind in ("png", "svg", "csv", "json", "md")]
    for path in paths[:2]:
        save_plot(path, points, model, device)
    rows = [{**asdict(p), "front": p in front(points), "speed": round(p.speed, 3)} for p in points]
    with paths[2].open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    paths[3].write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    heading = title_of(model, device, points).replace("\n", "; ")
    paths[4].write_text(f"# {heading}\n\n{table(points)}\n", encoding="utf-8")
    return paths
