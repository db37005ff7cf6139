"""What a job brought: its line in the records file, or the JSON that a prediction prints.

Figures are never read out of log text; logs only tell how far a running job is, and why it failed.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lt.commands import ROOT, Plan
from perf.record import RECORDS as RECORDED

RECORDS = ROOT / RECORDED  # jobs run in ROOT, wherever lt was started
# The last of these that a log holds says what its job is doing.
PHASES = (
    ("loading layers", "Loading weights"),
    ("Prefill of", "Prefill"),
    ("teacher forcing", "Teacher forcing"),
    ("==USER 0 - OUTPUT", "Decode"),
    ("Iteration ", "Decode"),
    ("==WRITTEN ALONE", "Judging"),
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Result:
    """Figures of one job; None where it has none. `provenance` is of speed and TTFT."""

    speed: float | None = None  # tokens/s/user
    ttft_ms: float | None = None
    top1: float | None = None
    top5: float | None = None
    provenance: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def records_size(path: Path = RECORDS) -> int:
    """Bytes of the records file now; what a job appends comes after them."""
    return path.stat().st_size if path.exists() else 0


def read_record(plan: Plan, offset: int, path: Path = RECORDS) -> Result | None:
    """The figures a job recorded after `offset`; other processes may write between."""
    if not path.exists():
        return None
    found = None
    with path.open("rb") as file:
        file.seek(offset)
        for line in file.read().decode("utf-8", "replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and _is_of(record, plan):
                found = record
    if found is None:
        return None
    return Result(
        found.get("tokens_per_s_per_user"),
        found.get("ttft_ms") or None,
        found.get("top1"),
        found.get("top5"),
        found.get("provenance", ""),
    )


def _is_of(record: dict[str, Any], plan: Plan) -> bool:
    return record.get("command") == plan.recorded_command and record.get("device") == plan.device


def read_prediction(log: Path) -> Result | None:
    """The JSON object in a prediction's output."""
    text = read_log(log)
    for start in (match.start() for match in re.finditer(r"^\{", text, re.MULTILINE)):
        try:
            found, _ = json.JSONDecoder().raw_decode(text[start:])
        except ValueError:
            continue
        if "tokens_per_s_per_user" in found:
            return Result(
                found["tokens_per_s_per_user"], found["ttft_ms"], provenance=found["provenance"]
            )
    return None


def read_log(log: Path, last_bytes: int = 200_000) -> str:
    """The end of a log as plain text; progress bars count as lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - last_bytes))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return _CONTROL.sub("", text).replace("\r", "\n")


def phase(log: Path) -> str:
    """What a running job is doing."""
    text = read_log(log, 20_000)
    places = [(text.rfind(mark), name) for mark, name in PHASES]
    place, name = max(places, default=(-1, ""))
    return name if place >= 0 else "Starting"


def error_line(log: Path) -> str:
    """The line that says why a job failed: one that calls itself an error, else the last."""
    lines = [line.strip() for line in read_log(log).splitlines() if line.strip()]
    for line in reversed(lines):
        if re.match(r"(error|E|\w+Error)\b[: ]", line):
            return line
    for line in reversed(lines):
        if not re.match(r"(=+|\d+ (failed|passed)|FAILED|!+)", line):
            return line
    return lines[-1] if lines else "no output"
