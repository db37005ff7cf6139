"""Weights on their way to the mesh: arranged as the plans want them, and never more than needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch

from backends import ttnn
from backends.device_specs import SPECS
from models.checkpoints import PlaceholderCheckpoint, RandomCheckpoint, open_checkpoint
from models.checkpoints.weight_cache import NoCache, WeightCache
from models.footprint import copied_bytes, layer_bytes
from models.plans.fused import shard
from models.plans.matmul import weight_memory
from models.plans.stored import Stored
from models.precision import ModelPrecision
from models.registry import load_config
from models.sharding import Sharding
from models.weights import WeightLoader, pad_to
from runtime.blueprint import LoadOptions, draw
from runtime.settings import Settings
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


def test_a_matrix_that_lies_twice_is_converted_and_kept_once(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(tiny_config("llama", num_layers=1))
    sizes = Sharding(checkpoint.config, 1, 1)
    memory = weight_memory(sizes.dim, sizes.hidden, SPECS["N150"])
    mesh = ttnn.open_mesh_device(ttnn.MeshShape(1, 1))
    caches: list[Any] = [NoCache(), WeightCache(tmp_path, "cold"), WeightCache(tmp_path, "cold")]
    for cache in caches:
        weights, built = WeightLoader(mesh, sizes, checkpoint, cache), []
        arrange = weights.transposed("layers.0.mlp.w1.weight", sizes.dim, sizes.hidden)

        def place(prefill: Any, at: Any = weights, make: Any = arrange, log: Any = built) -> Any:
            stored = Stored(ttnn.bfloat8_b, memory, prefill)
            return at.matrix("w1", lambda: log.append(1) or make(), ("dim", "hidden"), stored)

        free = mesh.dram.view().total_bytes_free_per_bank
        w = place(ttnn.DRAM_MEMORY_CONFIG)
        taken = free - mesh.dram.view().total_bytes_free_per_bank
        assert len(built) == (cache is not caches[2])
        assert w.decode.memory_config() == memory
        assert w.prefill.memory_config() == ttnn.DRAM_MEMORY_CONFIG
        assert w.decode.data is w.prefill.data, "the emulator holds the numbers once"
        assert w.decode.forms is w.prefill.forms
        assert 12 * taken >= w.decode.buffer_bytes() + w.prefill.buffer_bytes()
        del w
        one = place(None)
        assert one.decode is one.prefill
        del one
        cache.close()
    assert len(list((tmp_path / "cold").glob("*.tensorbin"))) == 1
    ttnn.close_mesh_device(mesh)


def test_prompts_go_in_pieces_where_weights_that_lie_twice_leave_no_room_for_one() -> None:
    bits8 = "precision_cfg = {ff1_3: bfp8, ff2: bfp8, wqkv: bfp8, wo: bfp8}"
    config, length = load_config("Llama-3.3-70B"), 131072
    options = LoadOptions(device="TG", optimizations=bits8, max_batch_size=32, max_seq_len=length)
    plan = draw(options, Settings("emulator"), config)
    blocks = plan.blocks_that_fit(length)
    assert blocks * 32 >= length
    plan = plan.with_cache(blocks, length)
    assert plan.max_prefill_chunk < length
    plan.check_fits()


def test_what_lies_twice_is_counted_twice() -> None:
    spec, config = SPECS["TG"], load_config("Llama-3.3-70B")
    narrow = replace(spec, compute_grid=(7, 10))
    layer = ModelPrecision.preset("performance", config).layer(0)
    sizes = shard(config, spec.mesh_shape, spec)
    assert copied_bytes(sizes, layer, spec) == 0, "products have their columns"
    # the copies lack what fills up the cores of the ring
    once, twice = layer_bytes(sizes, layer, narrow), copied_bytes(sizes, layer, narrow)
    assert 0.88 * once < twice < once
