"""The vision demo from end to end, on a tiny model: users with and without images in one batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.tiny_models import write_tiny

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_answers_about_images_and_says_which_it_saw(tmp_path: Path) -> None:
    model = write_tiny("mllama", tmp_path / "tiny")
    records = ROOT / "generated" / "benchmark_records.jsonl"
    before = records.read_text().count("\n") if records.exists() else 0
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "demo/simple_vision_demo.py", "-k",
         "batch4-trace-with-text-prompts", "--max_generated_tokens", "4"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HF_MODEL": str(model), "MESH_DEVICE": "N300",
             "TT_BACKEND": "emulator", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    for line in (
        "==USER 3 - OUTPUT",
        "Image of user 2",
        "random image 2 (1120x560 pixels, 2 tiles)",
    ):
        assert line in result.stdout
    lines = records.read_text().splitlines()[before:]
    (record,) = [r for r in map(json.loads, lines) if r["case"] == "batch4-trace-with-text-prompts"]
    assert (record["device"], record["provenance"], record["batch_size"]) == ("N300", "modelled", 4)
