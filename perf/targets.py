"""What figures are held against: perf/targets.json, read and (its published part) written here.

Sections: `published` (figures of the published tables), `tolerances`, `accuracy` (token accuracy
measured on the emulator), `predictions` (modelled figures that a change must not worsen; gate.py
records them), `own` (each published row as our own op list is predicted to reach it).

    python -m perf.targets     rewrites `published` from published/model_figures.csv
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.command import run
from models.registry import canonical_name
from perf.calibrate.published_rows import FIGURES

PATH = Path(__file__).with_name("targets.json")


@dataclass(frozen=True)
class AccuracyTarget:
    """Shares in percent of tokens that are the reference's first, or among its first five."""

    top1: float
    top5: float
    arithmetic: str = ""  # of the processor it was measured on


@dataclass(frozen=True)
class Target:
    """A published configuration; None where a figure is missing."""

    model: str
    device: str
    data_parallel: int
    batch_size: int
    prefill_len: int
    optimizations: str
    source: str
    tokens_per_s_per_user: float | None = None
    ttft_ms: float | None = None
    top1: float | None = None
    top5: float | None = None

    @property
    def has_image(self) -> bool:
        """Whether its prompt had an image: the 90B rows of the tables are a vision demo's."""
        return "90B" in self.model

    @property
    def key(self) -> tuple[object, ...]:
        """What a run must share with a target to be held against it."""
        name = canonical_name(self.model) or self.model
        where = (self.device, self.data_parallel, self.batch_size, self.prefill_len)
        return (name, *where, self.optimizations)


def load(path: Path = PATH) -> dict[str, Any]:
    """The whole file."""
    return json.loads(path.read_text(encoding="utf-8"))


def save(targets: Mapping[str, Any], path: Path = PATH) -> None:
    """Write the whole file, one line per published figure and prediction."""
    lines = []
    for name, section in targets.items():
        if isinstance(section, list):
            body = ",\n    ".join(json.dumps(entry) for entry in section)
            lines.append(f"  {json.dumps(name)}: [\n    {body}\n  ]")
        elif name in ("predictions", "own"):
            body = ",\n    ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in section.items())
            lines.append(f"  {json.dumps(name)}: {{\n    {body}\n  }}")
        else:
            text = json.dumps(section, indent=2).replace("\n", "\n  ")
            lines.append(f"  {json.dumps(name)}: {text}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def published(path: Path = PATH) -> list[Target]:
    """Every published figure."""
    return [Target(**entry) for entry in load(path)["published"]]


def find_target(
    model: str,
    device: str,
    *,
    batch_size: int,
    prefill_len: int,
    optimizations: str,
    data_parallel: int = 1,
    demo: str = "simple_text_demo",
    images: int = 0,
    path: Path = PATH,
) -> Target | None:
    """The published figure of a run, if there is one; the Galaxy's own demo has its own."""
    mode = "galaxy" if demo == "text_demo" else optimizations
    wanted = Target(model, device, data_parallel, batch_size, prefill_len, mode, "")
    rows = (t for t in published(path) if t.has_image == (images > 0))
    return next((t for t in rows if t.key == wanted.key), None)


def tolerances(path: Path = PATH) -> dict[str, float]:
    """Shares by which a figure may miss its target, or beat it before the target must rise."""
    return load(path)["tolerances"]


def accuracy_target(
    model: str, device: str, optimizations: str, path: Path = PATH
) -> AccuracyTarget:
    """Expected token accuracy; an unlisted configuration answers with what is listed."""
    entries = load(path)["accuracy"]
    for entry in entries:
        if (entry["model"], entry["device"], entry["optimizations"]) == (
            model, device, optimizations,
        ):  # fmt: skip
            return AccuracyTarget(entry["top1"], entry["top5"], entry.get("arithmetic", ""))
    known = "; ".join(f"{e['model']} {e['device']} {e['optimizations']}" for e in entries)
    raise ValueError(
        f"no accuracy target for {model} on {device} with {optimizations}: listed are {known}"
    )


def read_published(path: Path = FIGURES) -> list[dict[str, Any]]:
    """Published rows as entries of targets.json; missing figures are left out."""
    entries = []
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            mode = {"custom": line["precision"], "galaxy-opt": "galaxy"}.get(
                line["mode"], line["mode"]
            )
            entry: dict[str, Any] = {
                "model": line["model"],
                "device": line["device"],
                "data_parallel": int(line["dp"]),
                "batch_size": int(line["batch"]),
                "prefill_len": int(line["prefill_len"]),
                "optimizations": mode,
                "source": line["source"],
            }
            figures = ("ttft_ms", "top1", "top5")
            names = {"tsu": "tokens_per_s_per_user"} | {name: name for name in figures}
            entry |= {name: float(line[column]) for column, name in names.items() if line[column]}
            entries.append(entry)
    return entries


def main() -> int:
    """Rewrite the published section, keep the others."""
    known = load() if PATH.exists() else {}
    save(
        {
            "tolerances": known.get("tolerances", {"slower": 0.05, "faster": 0.15, "grown": 0.03}),
            "published": read_published(),
            "accuracy": known.get("accuracy", []),
            "predictions": known.get("predictions", {}),
            "own": known.get("own", {}),
        }
    )
    print(f"wrote {PATH}")
    return 0


if __name__ == "__main__":
    run(main, "perf.targets")
