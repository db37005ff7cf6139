"""lt without a screen: queue, wait, print a line per job, write tables and plots."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from lt import export, pareto
from lt.commands import Plan, config_name
from lt.jobs import FOLDER, Job, JobQueue, Status


@contextlib.contextmanager
def open_queue(timeout_s: float, folder: Path = FOLDER) -> Iterator[JobQueue]:
    """A queue that leaves no process behind, whichever way the program ends."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {name: signal.signal(name, stop) for name in (signal.SIGTERM, signal.SIGHUP)}
    queue = JobQueue(timeout_s=timeout_s, folder=folder)
    try:
        yield queue
    finally:
        queue.close()
        for name, handler in before.items():
            signal.signal(name, handler)


def run(plans: Sequence[Plan], *, timeout_s: float) -> list[Job]:
    """Run all plans; prints how each ended."""
    shown: set[int] = set()
    with open_queue(timeout_s) as queue:
        jobs = queue.add(plans)
        print(f"{len(jobs)} jobs, logs in {queue.folder / 'logs'}")
        while len(shown) < len(jobs):
            queue.wait_a_little()
            for job in jobs:
                if job.status.ended and job.number not in shown:
                    shown.add(job.number)
                    print(line_of(job), flush=True)
    return jobs


def line_of(job: Job) -> str:
    """One job in one line."""
    found, plan = job.result, job.plan
    figures = [
        f"{name} {export.number(value, digits)}"
        for name, value, digits in (
            ("top-1", found.top1, 2), ("top-5", found.top5, 2), ("t/s/u", found.speed, 1),
            ("TTFT ms", found.ttft_ms, 1),
        )
        if value is not None
    ]  # fmt: skip
    source = f"({found.provenance})" if found.provenance else ""
    where = f"{plan.command} {plan.model} {plan.device}"
    return " ".join(
        [f"{job.number:>4} {where:<36} {job.status.value:<9} {job.seconds:5.0f} s",
         *figures, source, job.output]
    ).rstrip()  # fmt: skip


def run_table(plans: Sequence[Plan], out: Path, *, timeout_s: float) -> int:
    """Run and write one markdown file."""
    jobs = run(plans, timeout_s=timeout_s)
    print(f"wrote {export.save(out, jobs)}")
    return _exit_code(jobs)


def run_pareto(plans: Sequence[Plan], out: Path, *, timeout_s: float) -> int:
    """Run and write a plot and a table for each model and device."""
    jobs = run(plans, timeout_s=timeout_s)
    pairs = dict.fromkeys((job.plan.model, job.plan.device) for job in jobs)
    for model, device in pairs:
        own = [job for job in jobs if (job.plan.model, job.plan.device) == (model, device)]
        points = pareto.points_of(own)
        if not points:
            print(f"error: {model} on {device} has no setting with accuracy and speed: see the "
                  "jobs above", file=sys.stderr)  # fmt: skip
            continue
        show(points, out, config_name(model), device)
    return _exit_code(jobs)


def show(points: Sequence[pareto.Point], out: Path, model: str, device: str) -> None:
    """Print the plot and the table, and write the files."""
    print(f"\n{pareto.title_of(model, device, points)}\n\n{pareto.text_plot(points)}\n")
    print(pareto.table(points))
    for path in pareto.save_all(out, points, model, device):
        print(f"wrote {path}")


def _exit_code(jobs: Sequence[Job]) -> int:
    return 0 if all(job.status is Status.FINISHED for job in jobs) else 1
