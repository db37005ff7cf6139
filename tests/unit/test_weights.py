"""Weights on their way to the mesh: arranged as the plans want them, and never more than needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch

from models.checkpoints import PlaceholderCheckpoint, RandomCheckpoint, open_checkpoint
from models.weights import WeightLoader, pad_to
from tests.tiny_formats import write_gguf
from tests.tiny_models import TinyCheckpoint, tiny_config, write_hf

WIDTH = 192  # of the mesh's share; the model's is 160


def table_of(checkpoint: Any) -> torch.Tensor:
    """The embedding as it goes to the device."""
    sharding: Any = SimpleNamespace(config=checkpoint.config, dim=WIDTH)
    return WeightLoader(None, sharding, checkpoint, None).table("embed.weight")()


@pytest.mark.parametrize("source", ["safetensors", "gguf", "random"])
def test_an_embedding_read_in_slices_is_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    tiny = TinyCheckpoint(tiny_config("llama-linear", num_layers=1))
    kind = gguf.GGMLQuantizationType.Q8_0
    checkpoint: Any = {
        "safetensors": lambda: open_checkpoint(write_hf(tiny, tmp_path)),
        "gguf": lambda: open_checkpoint(write_gguf(tiny, tmp_path / "m.gguf", kind=kind)),
        "random": lambda: RandomCheckpoint(tiny.config),
    }[source]()
    whole = checkpoint.get("embed.weight")
    expected = pad_to(whole.bfloat16(), whole.shape[0], WIDTH)[None, None]
    assert torch.equal(table_of(checkpoint), expected)
    read: list[int] = []
    if source != "random":  # drawn anew at every call, so one call must do
        really = checkpoint.get_rows

        def get_rows(name: str, start: int, stop: int) -> torch.Tensor:
            read.append(stop - start)
            return really(name, start, stop)

        monkeypatch.setattr(checkpoint, "get_rows", get_rows)
        monkeypatch.setattr(checkpoint, "get", None)
    monkeypatch.setattr("models.weights._SLICE_ELEMENTS", 100 * whole.shape[1])
    assert torch.equal(table_of(checkpoint), expected)
    assert source == "random" or (max(read) == 100 and sum(read) == whole.shape[0])


def test_an_embedding_without_data_stays_without() -> None:
    table = table_of(PlaceholderCheckpoint(tiny_config("llama-linear")))
    assert table.is_meta
    assert table.shape[-1] == WIDTH
