"""A fused decode step gives what the plain one gives, and that what one chip gives."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

from tests.model.helpers import engine_of, pcc, random_pages, random_prompt, run_forced
from tests.tiny_models import TinyCheckpoint, tiny_config


def _shaped(family: str, **sizes: int) -> TinyCheckpoint:
    """Two layers with the heads of a large model: 8 key/value heads 128 wide."""
    large = {"num_kv_heads": 8, "head_dim": 128, "hidden_dim": 6000, "num_layers": 2, **sizes}
    return TinyCheckpoint(dataclasses.replace(tiny_config(family), **large))


MODELS = {
    "llama-70b": _shaped("llama", dim=512, num_heads=64),
    "qwen2.5-72b": _shaped("qwen2", dim=512, num_heads=64),
    "qwen2.5-32b": _shaped("qwen2", dim=1280, num_heads=40),  # 5 heads a chip, filled up to 8
    # norms make random scores sharp: after two layers even chip and mesh are 0.9998 alike
    "qwen3-32b": _shaped("qwen3", dim=1280, num_heads=64, num_layers=1),
}
NEAR_TIE = 0.02  # logits here lie between 2 and 5, where a step of bfloat16 is 0.016 or 0.031


@functools.cache
def _run(model: str, device: str, **options: Any) -> tuple[torch.Tensor, int | None]:
    checkpoint = MODELS[model]
    words = checkpoint.config.vocab_size
    prompt, forced = random_prompt(words, 70), random_prompt(words, 5, seed=1)
    with engine_of(checkpoint, device, batch=2, **options) as engine:
        ring = engine.model.sharding.ring_cores
        return run_forced(engine, prompt, forced, random_pages(engine)), ring


def _plain(model: str) -> torch.Tensor:
    logits, ring = _run(model, "TG", fused=False)
    assert ring is None
    return logits


def _agree(logits: torch.Tensor, wanted: torch.Tensor, least: float) -> None:
    chosen = wanted.gather(-1, logits.argmax(-1, keepdim=True))
    assert (wanted.max(-1, keepdim=True).values - chosen).max() <= NEAR_TIE
    assert min(pcc(a, b) for a, b in zip(logits, wanted, strict=True)) >= least


@pytest.mark.parametrize("model", MODELS)
def test_a_fused_step_computes_what_the_plain_one_computes(model: str) -> None:
    logits, ring = _run(model, "TG")
    assert ring == 24
    _agree(logits, _plain(model), 0.9999)


def test_a_fused_step_without_a_trace_computes_the_same() -> None:
    logits, _ = _run("llama-70b", "TG", trace=False)
    _agree(logits, _plain("llama-70b"), 0.9999)


@pytest.mark.parametrize("model", ["qwen2.5-32b", "qwen3-32b"])
def test_a_fused_step_computes_what_one_chip_computes(model: str) -> None:
    logits, _ = _run(model, "TG")
    _agree(logits, _run(model, "N150")[0], 0.9995)
