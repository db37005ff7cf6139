"""Runs jobs one after the other, each as a process group of its own with a log and a time limit.

A job that fails, hangs or is cancelled ends alone; closing the queue ends whatever still runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from backends.scratch import write_whole
from lt import results
from lt.commands import ROOT, Plan
from lt.results import Result

FOLDER = ROOT / "generated" / "lt"
GRACE_S = 5.0  # between asking a process group to end and killing it
POLL_S = 0.1


class Status(Enum):
    """Where a job is."""

    WAITING = "Waiting"
    RUNNING = "Running"
    FINISHED = "Finished"
    FAILED = "Failed"
    TIMED_OUT = "Timed out"
    CANCELLED = "Cancelled"

    @property
    def ended(self) -> bool:
        return self not in (Status.WAITING, Status.RUNNING)


@dataclass
class Job:
    """A plan with its number, log and outcome."""

    number: int
    plan: Plan
    log: Path
    status: Status = Status.WAITING
    seconds: float = 0.0
    result: Result = field(default_factory=Result)
    output: str = ""  # why it ended badly

    @property
    def shown_status(self) -> str:
        """The status, or what a running job is doing."""
        return results.phase(self.log) if self.status is Status.RUNNING else self.status.value

    def as_dict(self) -> dict[str, object]:
        """JSON of everything but figures' types."""
        return {
            "plan": asdict(self.plan),
            "status": self.status.value,
            "seconds": self.seconds,
            "result": self.result.as_dict(),
            "output": self.output,
            "log": str(self.log),
        }


class JobQueue:
    """A list of jobs and the one thread that runs them; all methods may be called from any."""

    def __init__(
        self,
        *,
        folder: Path = FOLDER,
        timeout_s: float = 3600,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.timeout_s, self.on_change = folder, timeout_s, on_change
        self.jobs: list[Job] = []
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closing = False
        self._cancelled: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._last_number = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._reload()
        self._thread.start()

    def add(self, plans: Iterable[Plan]) -> list[Job]:
        """Queue jobs behind those that wait."""
        with self._lock:
            added = [self._new_job(plan) for plan in plans]
            self.jobs += added
        self._changed()
        return added

    def cancel(self, job: Job) -> None:
        """End a waiting or running job; an ended one leaves the list."""
        with self._lock:
            if job.status.ended:
                self.jobs = [kept for kept in self.jobs if kept is not job]
            elif job.status is Status.WAITING:
                job.status = Status.CANCELLED
            else:
                self._cancelled.add(job.number)
        self._changed()

    def cancel_all(self) -> None:
        """End everything that waits or runs."""
        with self._lock:
            pending = [job for job in self.jobs if not job.status.ended]
        for job in pending:
            self.cancel(job)

    def restart(self, job: Job) -> Job | None:
        """Queue an ended job's plan again; None while it waits or runs."""
        return self.add([job.plan])[0] if job.status.ended else None

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        with self._lock:
            return any(not job.status.ended for job in self.jobs)

    def wait_a_little(self) -> None:
        """Let jobs go on."""
        time.sleep(POLL_S)

    def close(self) -> None:
        """Cancel everything and leave no process behind."""
        self._closing = True
        self.cancel_all()
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * GRACE_S)
        process = self._process
        if process is not None:
            end_group(process, grace_s=0)

    def _new_job(self, plan: Plan) -> Job:
        self._last_number += 1
        number = self._last_number
        name = "-".join([plan.device, plan.model.strip("/").split("/")[-1], plan.command])
        safe = re.sub(r"[^\w.-]+", "_", name)
        return Job(number, plan, self.folder / "logs" / f"{number:04d}-{safe}.log")

    def _work(self) -> None:
        while not self._closing:
            with self._lock:
                waiting = [job for job in self.jobs if job.status is Status.WAITING]
                if waiting:
                    waiting[0].status = Status.RUNNING
                else:
                    self._wake.clear()
            if not waiting:
                self._wake.wait(timeout=1)
                continue
            job = waiting[0]
            try:
                self._run(job)
            except Exception as error:  # a job must never take the queue with it
                job.status, job.output = Status.FAILED, str(error)
            self._changed()

    def _run(self, job: Job) -> None:
        plan, begin = job.plan, time.monotonic()
        offset = results.records_size()
        self._changed()
        with job.log.open("wb") as log:
            log.write(f"$ {shlex.join(plan.argv)}\n".encode())
            log.flush()
            self._process = process = subprocess.Popen(
                plan.argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            stopped = None
            while process.poll() is None:
                job.seconds = time.monotonic() - begin
                if job.number in self._cancelled or self._closing:
                    stopped = Status.CANCELLED
                elif job.seconds > self.timeout_s:
                    stopped = Status.TIMED_OUT
                if stopped is not None:
                    break
                time.sleep(POLL_S)
            end_group(process, grace_s=GRACE_S if stopped else 0)  # also what the job left behind
        self._process = None
        job.seconds = time.monotonic() - begin
        self._finish(job, stopped, process.returncode, offset)

    def _finish(self, job: Job, stopped: Status | None, code: int, offset: int) -> None:
        found = (
            results.read_prediction(job.log)
            if job.plan.is_prediction
            else results.read_record(job.plan, offset)
        )
        job.result = found or Result()
        if stopped is not None:
            job.output = f"after {job.seconds:.0f} s" if stopped is Status.TIMED_OUT else ""
        elif code:
            job.output = results.error_line(job.log)
        job.status = stopped or (Status.FAILED if code else Status.FINISHED)

    def _changed(self) -> None:
        self._wake.set()
        with self._lock:
            text = json.dumps([job.as_dict() for job in self.jobs], indent=1)
            write_whole(self.folder / "state.json", text)
        if self.on_change is not None:
            self.on_change()

    def _reload(self) -> None:
        """Jobs of the last session; what had not ended then was cancelled."""
        try:
            stored = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            for entry in stored:
                plan = entry["plan"]
                plan["arguments"] = tuple(plan["arguments"])
                plan["variables"] = tuple(tuple(pair) for pair in plan["variables"])
                job = Job(0, Plan(**plan), Path(entry["log"]), Status(entry["status"]),
                          entry["seconds"], Result(**entry["result"]), entry["output"])  # fmt: skip
                job.number = int(job.log.name.split("-")[0])
                if not job.status.ended:
                    job.status = Status.CANCELLED
                self.jobs.append(job)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            self.jobs = []  # none, or damaged: logs and records are still there
        logs = [path.name.split("-")[0] for path in (self.folder / "logs").glob("*.log")]
        taken = [int(name) for name in logs if name.isdigit()]
        # a job that never started has no log
        self._last_number = max([*taken, *(job.number for job in self.jobs)], default=0)


def end_group(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """Ask a process group to end, then kill it; also when its leader has ended already."""
    deadline = time.monotonic() + grace_s
    if grace_s:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S / 2)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
