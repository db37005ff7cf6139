"""One model on every mesh: sums in another order, the same logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from backends.emulator.kv import alike
from backends.op_record import record_ops
from models.checkpoints import RandomCheckpoint
from models.plans import target
from tests.model.helpers import engine_of, pcc, random_pages, random_prompt, run_forced
from tests.tiny_models import TinyCheckpoint, tiny_config

CHECKPOINT = TinyCheckpoint(tiny_config("llama"))  # 9 query and 3 key/value heads: divides nowhere
PROMPT = random_prompt(CHECKPOINT.config.vocab_size, 150)
FORCED = random_prompt(CHECKPOINT.config.vocab_size, 8, seed=1)


def _logits(device: str, optimizations: str | None = None, batch: int = 1) -> torch.Tensor:
    extra = {} if optimizations is None else {"optimizations": optimizations}
    with engine_of(CHECKPOINT, device, batch=batch, **extra) as engine:
        return run_forced(engine, PROMPT, FORCED, random_pages(engine))


@pytest.fixture(scope="module")
def one_chip() -> torch.Tensor:
    return _logits("N150")


@pytest.mark.parametrize("device", ["N300", "T3K", "TG", "T3K_2x4"])
def test_a_mesh_computes_what_one_chip_computes(one_chip: torch.Tensor, device: str) -> None:
    got = _logits(device)
    assert min(pcc(a, b) for a, b in zip(got, one_chip, strict=True)) >= 0.9995


@pytest.mark.parametrize(
    ("device", "batch", "groups"),
    [
        ("N150", 3, 1),
        ("T3K", 3, 4),
        ("TG", 4, 16),
        ("TG", 3, 4),
    ],  # fewer users than columns: shared
)
def test_caches_of_replicated_heads_are_known_to_be_alike(
    device: str, batch: int, groups: int
) -> None:
    with engine_of(CHECKPOINT, device, batch=batch) as engine:
        run_forced(engine, PROMPT, FORCED, random_pages(engine))
        for cache in engine.model.caches:
            data = cache.k.data
            known = alike.of([data], [engine.positions.tensor.data])
            assert len(set(known.first)) == groups  # 3 heads and nothing, for each column's users
            assert len(known.empty) == len(known.first) // 4
            chips = data.flatten(0, 1)
            assert torch.equal(chips, chips[list(known.first)])
            assert not chips[list(known.empty)].any()
            assert chips.any()


def test_sums_on_other_cores_than_the_streams_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = dataclasses.replace(tiny_config("llama", num_layers=2), dim=512, hidden_dim=768)
    found, moves = [], []
    for most in (target.MOST_WIDE_PARTS, 0):  # bytes of a core's L1
        monkeypatch.setattr(target, "MOST_WIDE_PARTS", most)
        with engine_of(RandomCheckpoint(config, seed=0), "P150x4") as engine:
            with record_ops() as records:
                found.append(run_forced(engine, PROMPT, FORCED[:2], random_pages(engine)))
            moves.append(sum(record.name == "to_memory_config" for record in records))
    assert torch.equal(*found)
    assert moves[0] < moves[1]


def test_block_formats_on_a_mesh_stay_close_to_one_chip() -> None:
    text = "precision_cfg = {ff1_3: bfp8, ff2: bfp8, wqkv: bfp8, wo: bfp8, kv_cache: bfp8}"
    pairs = zip(_logits("T3K", text), _logits("N150", text), strict=True)
    assert min(pcc(a, b) for a, b in pairs) >= 0.99


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_14_and_10_heads_run_on_8_chips(family: str) -> None:
    checkpoint = TinyCheckpoint(tiny_config(family))
    tokens = random_prompt(checkpoint.config.vocab_size, 60)
    found = []
    for device in ("N150", "T3K"):
        with engine_of(checkpoint, device) as engine:
            found.append(run_forced(engine, tokens, tokens[:3], random_pages(engine)))
    assert min(pcc(a, b) for a, b in zip(*found, strict=True)) >= 0.9995
