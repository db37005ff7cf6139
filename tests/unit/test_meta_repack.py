"""Repacked Meta checkpoints hold exactly the weights of the original shards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backends.command import run
from models.checkpoints import open_checkpoint
from models.checkpoints.repack import main, repack
from tests.tiny_formats import write_meta
from tests.tiny_models import TinyCheckpoint, tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]


def tiny(num_layers: int) -> TinyCheckpoint:
    """A Llama that divides into three shards."""
    return TinyCheckpoint(tiny_config("llama", num_layers=num_layers))


def assert_holds(directory: Path, checkpoint: TinyCheckpoint) -> None:
    """The directory opens and gives the checkpoint's numbers."""
    opened = open_checkpoint(directory)
    assert all(torch.equal(opened.get(name), checkpoint.get(name)) for name in checkpoint.names())


def test_repacked_files_hold_the_same_weights_by_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.checkpoints.repack.MAPPED_BYTES_LIMIT", 2**19)
    original = write_meta(tiny(5), tmp_path / "Llama-3.1-70B", shards=3)
    files = repack(original, tmp_path / "out-3.1-70B", chunk_size=2)
    assert [file.name for file in files] == ["layers_0-1.pth", "layers_2-3.pth", "layers_4-4.pth"]
    in_first = torch.load(files[0], weights_only=True)
    assert {"tok_embeddings.weight", "norm.weight", "output.weight"} <= set(in_first)
    assert (files[0].parent / "tokenizer.model").is_file()
    assert_holds(files[0].parent, tiny(5))


def test_the_script_may_write_beside_the_original(tmp_path: Path) -> None:
    original = write_meta(tiny(2), tmp_path, shards=3)
    repack(original, original)  # so that repacked files lie there already
    command = [sys.executable, "scripts/repack_weights_70b.py", str(original), str(original)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "wrote 1 files" in result.stdout
    for shard in original.glob("consolidated.*"):
        shard.unlink()
    assert_holds(original, tiny(2))


def test_vision_tensors_are_left_out(tmp_path: Path) -> None:
    original = write_meta(tiny(2), tmp_path / "in", shards=3)
    for file in original.glob("consolidated.*"):
        content = {f"text_model.{k}": v for k, v in torch.load(file, weights_only=True).items()}
        content |= {"vision_model.conv1.weight": torch.ones(4, 3)}
        content |= {"text_model.cross_attention_layers.0.gate_attn": torch.ones(1)}
        torch.save(content, file)
    assert_holds(original, tiny(2))
    (file,) = repack(original, tmp_path / "out")
    assert all(name.startswith("text_model.") for name in torch.load(file, weights_only=True))
    assert_holds(tmp_path / "out", tiny(2))


def test_an_overlapping_or_incomplete_set_of_repacked_files_is_refused(tmp_path: Path) -> None:
    original = write_meta(tiny(3), tmp_path / "in", shards=1)
    files = repack(original, tmp_path / "out", chunk_size=2)
    files[1].rename(tmp_path / "kept.pth")
    with pytest.raises(ValueError, match=r"lacks layers\.2\."):
        open_checkpoint(tmp_path / "out")
    (tmp_path / "out" / "layers_1-1.pth").write_bytes(files[0].read_bytes())
    with pytest.raises(ValueError, match="is both in layers_0-1.pth and in layers_1-1.pth"):
        open_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("0", "use a whole number from 1 to 1024"), ("-n80", "has 1 layers, not 80")],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: str,
    message: str,
) -> None:
    original = write_meta(tiny(1), tmp_path, shards=1)
    monkeypatch.setattr(sys, "argv", ["repack", str(original), str(original), wrong])
    with pytest.raises(SystemExit) as stopped:
        run(lambda: main("Repacks.", "3.2-90B"), "repack")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
