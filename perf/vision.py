"""Vision models beside what is published of them: images in, text out, apart from the text rows.

Nothing is fitted to these rows: they were made by other software, at other layouts of tiles, and
most give a prefill speed alone. Ours is an image of the most tiles and a prompt of 128 tokens.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from backends.device_specs import SPECS
from perf.cost.software import OWN
from perf.op_lists.record import Workload
from perf.predict.figures import Prediction, predict, workload_for

FIGURES = Path(__file__).with_name("published") / "vision_figures.csv"
# what a pull request must not make slower (perf/gate.py), and what the table shows
RUNS = (
    ("Llama-3.2-11B-Vision", "N300"), ("Llama-3.2-11B-Vision", "T3K"),
    ("Llama-3.2-11B-Vision", "P150"), ("Llama-3.2-90B-Vision", "T3K"),
)  # fmt: skip
COLUMNS = (
    "Model", "Device", "Speed ours (modelled)", "Speed published", "TTFT ours (modelled)",
    "TTFT published", "Published by",
)  # fmt: skip


def vision_job(model: str, device: str) -> Workload:
    """One user with one image of the most tiles."""
    return workload_for(model, SPECS[device], software=OWN, images=1)


def rows() -> Iterator[list[str]]:
    """Every published row beside ours, and ours where nothing is published."""
    with FIGURES.open(encoding="utf-8", newline="") as file:
        published = list(csv.DictReader(file))
    for model, device in RUNS:
        ours = predict(vision_job(model, device), software=OWN)
        found = [r for r in published if (r["model"], r["device"]) == (model, device)]
        for row in found or [{"tsu": "", "ttft_ms": "", "source": "", "date": "", "note": ""}]:
            speed, ttft = _ours(ours, row)
            by = ", ".join(filter(None, (row["source"], row["date"], row["note"])))
            yield [model, device, speed, row["tsu"], ttft, row["ttft_ms"], by]


def _ours(ours: Prediction, row: dict[str, str]) -> tuple[str, str]:
    """Our figures with their ratios to the published ones; above 1: ours is faster."""
    speed, ttft = f"{ours.tokens_per_s_per_user:.1f}", f"{ours.ttft_ms:.0f}"
    if row["tsu"]:
        speed += f" ({ours.tokens_per_s_per_user / float(row['tsu']):.2f} x)"
    if row["ttft_ms"]:
        ttft += f" ({float(row['ttft_ms']) / ours.ttft_ms:.2f} x)"
    return speed, ttft
