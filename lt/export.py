"""Results as markdown: one table per kind of command, each row with where its figures come from."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from lt.commands import config_name
from lt.jobs import Job

HEADS = ("Model", "Device", "Command", "Status", "Top-1 (%)", "Top-5 (%)", "Speed (t/s/u)",
         "TTFT (ms)", "Speed is")  # fmt: skip


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def markdown(jobs: Iterable[Job]) -> str:
    """Tables by setting, in the order the settings were first run."""
    sections: dict[str, list[Job]] = {}
    for job in jobs:
        sections.setdefault(job.plan.optimizations or "Other runs", []).append(job)
    parts = ["# Results of lt", ""]
    for title, members in sections.items():
        parts += [f"## {title[:1].upper()}{title[1:]}" if "=" not in title else f"## {title}", ""]
        parts += [_row(HEADS), _row(["---"] * len(HEADS)), *map(_job_row, members), ""]
        parts += ["Made with:", ""]
        parts += [f"- `{shlex.join(job.plan.argv)}`" for job in members]
        parts += [""]
    return "\n".join(parts)


def _job_row(job: Job) -> str:
    found, plan = job.result, job.plan
    model = config_name(plan.model) if plan.model != "-" else "-"
    status = f"{job.status.value}: {job.output}" if job.output else job.status.value
    return _row(
        [model, plan.device, plan.command, status.replace("|", "/"), number(found.top1, 2),
         number(found.top5, 2), number(found.speed), number(found.ttft_ms), found.provenance]
    )  # fmt: skip


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def save(path: Path, jobs: Iterable[Job]) -> Path:
    """Write the tables; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(jobs), encoding="utf-8")
    return path
