"""Converting ahead of time fills the very cache a run then starts from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints import PlaceholderCheckpoint, open_checkpoint
from models.checkpoints.convert import CountingCheckpoint, convert
from models.checkpoints.weight_cache import WeightCache
from tests.sparse_model import write_sparse
from tests.tiny_models import write_tiny

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_converted_model_starts_without_reading_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny("qwen3", tmp_path / "model")
    cold = convert(model, "N150")
    assert cold.converted == cold.weights > 0
    assert Path(cold.cache).parent == model / "N150"
    read = sum(open_checkpoint(model).get(name).nbytes for name in open_checkpoint(model).names())
    assert cold.checkpoint_gb == pytest.approx(read / 1e9, rel=0.2)
    monkeypatch.setattr(CountingCheckpoint, "get", None)
    warm = convert(model, "N150")
    assert (warm.converted, warm.checkpoint_gb, warm.weights) == (0, 0.0, cold.weights)


def test_presets_share_what_they_have_in_common(tmp_path: Path) -> None:
    model = write_tiny("llama", tmp_path / "model")
    convert(model, "N150", optimizations="performance")
    accuracy = convert(model, "N150", optimizations="accuracy")
    assert 0 < accuracy.converted < accuracy.weights


def test_nan_in_the_checkpoint_poisons_no_cache(tmp_path: Path) -> None:
    model = write_tiny("llama", tmp_path / "model")
    file = model / "model.safetensors"
    good = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**good, name: torch.full_like(good[name], float("nan"))}, file)
    with pytest.raises(ValueError, match=f"{name} holds"):
        convert(model, "N150", cache_path=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("layers.1.mlp.w2*"))
    save_file(good, file)
    assert convert(model, "N150", cache_path=tmp_path / "cache").converted > 0


def test_the_command_prints_its_figures_or_one_line_of_error(tmp_path: Path) -> None:
    model = write_tiny("llama-linear", tmp_path / "model")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "models.checkpoints.convert", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    report = json.loads(run("--model", str(model), "--device", "N150", "--report").stdout)
    assert report["converted"] == report["weights"]
    assert report["peak_memory_gib"] > 0
    failed = run("--model", str(tmp_path / "absent"))
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("models.checkpoints.convert: error: ")


def test_a_failed_write_is_an_error_of_the_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny("llama-linear", tmp_path / "model")
    monkeypatch.setattr(WeightCache, "store", lambda *_: None)
    with pytest.raises(ValueError, match="is the disk full"):
        convert(model, "N150")


def test_a_sparse_model_has_full_size_and_takes_no_space(tmp_path: Path) -> None:
    directory = write_sparse("SmolLM2-135M-Instruct", tmp_path, shard_bytes=10**8)
    opened = open_checkpoint(directory)
    shapes = PlaceholderCheckpoint(opened.config)
    name = "layers.29.mlp.w2.weight"
    assert opened.get(name).shape == shapes.get(name).shape
    files = list(directory.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) > 2 * opened.config.num_parameters
    assert sum(file.stat().st_blocks for file in files) * 512 < 10**6
