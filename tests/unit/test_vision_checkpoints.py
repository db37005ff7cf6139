"""A vision model's weights are the same from HF's, Meta's and repacked files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoints import RandomCheckpoint, open_checkpoint
from models.checkpoints.reference import build_reference
from models.checkpoints.repack import repack
from models.checkpoints.vision_names import per_layout
from models.registry import load_config
from tests.tiny_formats import write_meta
from tests.tiny_models import TinyCheckpoint, tiny_config, write_hf

CONFIG = tiny_config("mllama")


def assert_holds(directory: Path) -> None:
    """The directory gives the tiny model's numbers, all of them, in one canonical form."""
    opened, original = open_checkpoint(directory, vision=True), TinyCheckpoint(CONFIG)
    assert opened.names() == original.names()
    assert opened.config.digest == CONFIG.digest
    for name in original.names():
        assert torch.equal(opened.get(name), original.get(name)), name
    opened.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_hf_files_hold_the_image_side_under_the_published_names(
    tmp_path: Path, shards: int
) -> None:
    assert_holds(write_hf(TinyCheckpoint(CONFIG), tmp_path, shards=shards))


def test_metas_shards_and_repacked_files_hold_the_same_and_leave_nothing_out(
    tmp_path: Path,
) -> None:
    original = write_meta(TinyCheckpoint(CONFIG), tmp_path / "in", shards=2)
    assert_holds(original)
    files = repack(original, tmp_path / "out", chunk_size=2)
    assert [file.name for file in files] == ["layers_0-1.pth", "layers_2-3.pth"]
    first, second = (set(torch.load(file, weights_only=True)) for file in files)
    assert any(name.startswith("vision_model.") for name in first)
    looks = "text_model.cross_attention_layers."
    assert all(
        any(n.startswith(f"{looks}{c}.") for n in kept) for c, kept in ((0, first), (1, second))
    )
    whole = set(torch.load(original / "consolidated.00.pth", weights_only=True))
    assert first | second == whole
    assert_holds(tmp_path / "out")


def test_the_text_stack_alone_reads_neither_tower_nor_cross_attention(tmp_path: Path) -> None:
    hf = write_hf(TinyCheckpoint(CONFIG), tmp_path / "hf")
    meta = write_meta(TinyCheckpoint(CONFIG), tmp_path / "meta")
    for directory in (hf, meta):
        opened = open_checkpoint(directory)
        assert opened.config.vision is None
        assert not [n for n in opened.names() if n.startswith(("vision", "cross", "image"))]
        original = TinyCheckpoint(CONFIG)
        assert all(torch.equal(opened.get(n), original.get(n)) for n in opened.names())


def test_published_files_load_into_hfs_own_model_with_the_numbers_of_our_reference(
    tmp_path: Path,
) -> None:
    from transformers import MllamaForConditionalGeneration

    write_hf(TinyCheckpoint(CONFIG), tmp_path)
    theirs = MllamaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    ours = build_reference(TinyCheckpoint(CONFIG))
    found = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, found[name]), name


def test_query_and_key_rows_of_what_knows_no_rotary_positions_are_as_hf_stores_them(
    tmp_path: Path,
) -> None:
    """Norms of heads have a weight for each row: rotary order would pair them with others."""
    original = TinyCheckpoint(CONFIG)
    stored = load_file(write_hf(original, tmp_path) / "model.safetensors")
    tower, text = "vision_model", f"language_model.model.layers.{CONFIG.vision.cross_before[0]}"
    for ours, theirs in {
        "cross_layers.0": f"{text}.cross_attn",
        "vision.layers.0": f"{tower}.transformer.layers.0.self_attn",
        "vision.global_layers.0": f"{tower}.global_transformer.layers.0.self_attn",
    }.items():
        for part in "qk":
            own = original.get(f"{ours}.attention.w{part}.weight")
            assert torch.equal(stored[f"{theirs}.{part}_proj.weight"], own), (ours, part)


def test_metas_tables_by_rows_and_columns_are_read_tile_by_tile() -> None:
    vision = load_config("Llama-3.2-11B-Vision", vision=True).vision
    assert vision is not None
    sides = torch.arange(4)
    table = per_layout((10 * sides[:, None] + sides).reshape(4, 4, 1, 1), vision)
    tiles = {(1, 3): [0, 1, 2, 0], (3, 1): [0, 10, 20, 0], (2, 2): [0, 1, 10, 11]}
    assert {layout: table[vision.ratio_id(*layout)].tolist() for layout in tiles} == tiles


def test_random_weights_leave_no_gate_at_zero() -> None:
    checkpoint = RandomCheckpoint(CONFIG)
    gates = [name for name in checkpoint.names() if name.endswith("gate")]
    assert len(gates) == 2 * 2 + 2 * 2 + 3  # cross layers, global layers, tables
    assert all(checkpoint.get(name).abs().item() > 0.5 for name in gates)


@pytest.mark.parametrize(("size", "billions"), [("11B", 10.67), ("90B", 88.59)])
def test_sizes_are_the_published_ones(size: str, billions: float) -> None:
    config = load_config(f"Llama-3.2-{size}-Vision", vision=True)
    assert config.num_parameters / 1e9 == pytest.approx(billions, abs=0.01)
    counted = sum(torch.Size(shape).numel() for shape in RandomCheckpoint(config)._shapes.values())
    assert counted == config.num_parameters


def test_a_text_model_asked_for_images_says_which_models_take_them(tmp_path: Path) -> None:
    directory = write_hf(TinyCheckpoint(tiny_config("llama")), tmp_path)
    with pytest.raises(ValueError, match="takes no images: use Llama-3.2-11B-Vision"):
        open_checkpoint(directory, vision=True)
