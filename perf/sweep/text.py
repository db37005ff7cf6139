"""A sweep as text: a table, a comparison of two devices, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from perf.sweep.points import Point, Room

COLUMNS = (
    "device", "precision", "DP", "batch", "context", "t/s/u", "80 %", "t/s", "TTFT ms", "t/s/W",
    "t/s/board", "front",
)  # fmt: skip


def cells(p: Point) -> list[str]:
    """One line of the table."""
    asked = [p.device, p.optimizations, str(p.data_parallel), str(p.batch), str(p.context)]
    if p.refused:
        return [*asked, "-", p.refused.split(":")[0][:60], "", "", "", "", ""]
    watt = "not known" if p.tokens_per_s_per_watt is None else f"{p.tokens_per_s_per_watt:.3g}"
    watt += " (chips)" * (p.watts_of == "chips")
    return [
        *asked, f"{p.tokens_per_s_per_user:.1f}", f"{p.low:.1f} to {p.high:.1f}",
        f"{p.tokens_per_s:.0f}", f"{p.ttft_ms:.0f}", watt, f"{p.tokens_per_s_per_board:.0f}",
        "*" if p.on_front else "",
    ]  # fmt: skip


def aligned(rows: Iterable[Sequence[str]], columns: Sequence[str]) -> str:
    """Text columns as wide as they need to be."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def compared(points: Sequence[Point]) -> str:
    """The second of two devices against the first, row by row."""
    names = list(dict.fromkeys(p.device for p in points))
    if len(names) != 2:
        return ""
    half = len(points) // 2
    rows = []
    for a, b in zip(points[:half], points[half:], strict=True):
        if a.tokens_per_s_per_user and b.tokens_per_s_per_user and a.ttft_ms and b.ttft_ms:
            speed, ttft = b.tokens_per_s_per_user / a.tokens_per_s_per_user, b.ttft_ms / a.ttft_ms
            shape = [a.optimizations, str(a.data_parallel), str(a.batch), str(a.context)]
            rows.append([*shape, f"{speed:.2f}", f"{ttft:.2f}"])
    head = ("precision", "DP", "batch", "context", "speed", "TTFT")
    return f"{names[1]} / {names[0]}\n{aligned(rows, head)}"


def text(points: Sequence[Point], room: Sequence[Room]) -> str:
    """Everything, for a terminal."""
    software = ", ".join(dict.fromkeys(p.software for p in points))
    parts = [
        f"modelled figures of software {software}; * marks the front of latency and throughput at "
        "a context"
    ]
    parts.append(aligned(map(cells, points), COLUMNS))
    bare = dict.fromkeys(f"{p.device} {p.watts:g} W" for p in points if p.watts_of == "chips")
    if bare:
        parts.append(
            "t/s/W (chips): only what firmware lets the chips draw is published "
            f"({', '.join(bare)}); memory and boards come on top"
        )
    lines = [
        [r.device, r.optimizations, str(r.data_parallel),
         " ".join(f"{c}:{b}" for c, b in r.largest_batch.items()),
         " ".join(f"{b}:{c}" for b, c in r.longest_context.items())]
        for r in room
    ]  # fmt: skip
    head = ("device", "precision", "DP", "largest batch by context", "longest context by batch")
    parts += [aligned(lines, head), compared(points)]
    return "\n\n".join(filter(None, parts))


def as_csv(points: Sequence[Point]) -> str:
    """One line a point."""
    out = io.StringIO()
    lines = [asdict(p) for p in points]
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
