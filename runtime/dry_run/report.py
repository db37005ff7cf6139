"""Reports of the dry run for people; passes.py writes them as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.numbers import counted

GIB, KIB = 2**30, 2**10
_COLUMNS = ("pass", "ops", "per layer", "programs", "L1 KiB/core", "DRAM GiB", "seconds")


def render(report: Mapping[str, Any]) -> str:
    """The whole report as text."""
    return "\n".join(_lines(report))


def verdict(report: Mapping[str, Any]) -> str:
    """One line: what was checked and how it ended."""
    status = report["status"].upper()
    subject = f"{report['model']} on {report['device']}"
    if report["status"] == "fail":
        failure = report["failure"]
        scope = f" in {failure['scope']}" if failure["scope"] else ""
        return (
            f"{status} {subject}: {failure['op']}{scope} at {failure['where']}: {failure['words']}"
        )
    if "reason" in report:
        return f"{status} {subject}: {report['reason']}"
    checked = "; ".join(_checked(run) for run in report.get("runs", []) if "num_blocks" in run)
    what = f": checked {checked}" if checked else ""
    return f"{status} {subject}, {report['optimizations']}, {report['seconds']} s{what}"


def _checked(run: Mapping[str, Any]) -> str:
    """How many users had how much context: a page pool need not hold the longest of all at once."""
    users, context = run["batch_size"], run["max_seq_len"]
    each = min(context, run["num_blocks"] * run["block_size"] // users)
    alone = f" at once (any one of them up to {context})" if each < context else ""
    return f"{counted(users, 'user')} of {each} tokens{alone}"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    for run in report.get("runs", []):
        if "dram" not in run:
            continue
        rows, columns = run["mesh_shape"]
        yield (
            f"batch {run['batch_size']}, context {run['max_seq_len']}, {run['layers']} layers, "
            f"mesh {rows}x{columns}, {run['num_blocks']} pages of {run['block_size']}, "
            f"prefill chunk {run['max_prefill_chunk']}, {run['programs']} programs compiled"
        )
        yield from _table(run["phases"])
        dram = run["dram"]
        free = dram["total"] - dram["peak"]
        yield (
            f"  DRAM per chip: weights {dram['weights'] / GIB:.2f} + cache "
            f"{dram['cache'] / GIB:.2f} + rest {dram['rest'] / GIB:.2f} GiB, {free / GIB:.2f} of "
            f"{dram['total'] / GIB:.2f} GiB free"
        )
        fits = run["fits"]
        contexts = ", ".join(
            f"{length} at batch {batch}"
            for batch, length in fits["largest_context_at_batch"].items()
        )
        batch = fits["largest_batch_at_max_seq_len"]
        yield (
            f"  would fit: context {contexts}; {batch} users of {run['max_seq_len']} tokens; "
            f"{fits['cache_tokens']} tokens in all"
        )
        yield ""
    yield verdict(report)


def _table(phases: list[dict[str, Any]]) -> Iterator[str]:
    rows = [
        (
            phase["name"],
            str(phase["ops"]),
            str(phase["ops_per_layer"]),
            str(phase["programs"]),
            f"{phase['l1_peak'] / KIB:.0f}",
            f"{phase['dram_peak'] / GIB:.2f}",
            f"{phase['seconds']:.2f}",
        )
        for phase in phases
    ]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    for row in (_COLUMNS, *rows):
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"  {first}  {'  '.join(others)}"
