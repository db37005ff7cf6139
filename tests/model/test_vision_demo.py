"""The vision demo from end to end, on a tiny model: users with and without images in one batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demo.cases import VISION_CASES
from tests.tiny_models import write_tiny

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "generated" / "benchmark_records.jsonl"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("mllama", tmp_path_factory.mktemp("models") / "tiny")


def run_demo(
    model: Path, device: str, *words: str
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """How the demo ended, and the records that it appended."""
    before = RECORDS.read_text().count("\n") if RECORDS.exists() else 0
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "demo/simple_vision_demo.py", "-p", "no:cacheprovider",
         *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HF_MODEL": str(model), "MESH_DEVICE": device,
             "TT_BACKEND": "emulator", "HOME": str(model.parent), **kept},
    )  # fmt: skip
    lines = RECORDS.read_text().splitlines()[before:] if RECORDS.exists() else []
    # others may be appending at the same time
    return result, [r for r in map(json.loads, lines) if r["model"] == "tiny"]


def test_every_case_answers_about_images_and_says_which_it_saw(model: Path) -> None:
    result, records = run_demo(model, "N300", "--max_generated_tokens", "4")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    for line in (
        "==USER 31 - OUTPUT",
        "Image of user 2",
        "random image 2 (1120x560 pixels, 2 tiles)",
    ):
        assert line in result.stdout
    found = {record["case"]: record for record in records}
    assert set(found) == {case.id for case in VISION_CASES}
    for case in VISION_CASES:
        record = found[case.id]
        assert (record["device"], record["provenance"]) == ("N300", "modelled")
        assert record["batch_size"] == case.batch_size


@pytest.mark.full
@pytest.mark.parametrize("device", ["N150", "T3K"])
def test_other_meshes_answer_too(model: Path, device: str) -> None:
    result, (record,) = run_demo(model, device, "-k", "batch1-trace", "--max_generated_tokens", "4")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert record["device"] == device


def test_an_image_that_is_not_there_is_one_line(model: Path) -> None:
    """Behind the option; what each kind is told stands in tests/unit/test_images.py."""
    result, records = run_demo(model, "N300", "-k", "batch1-trace", "--image", "nowhere.png")
    lines = (result.stdout + result.stderr).splitlines()
    assert result.returncode == 1 and not records
    (error,) = (line for line in lines if "error" in line.lower())
    assert error.startswith("error: there is no image 'nowhere.png': give a file")
