"""A fused decode step gives what the plain one gives; test_meshes.py holds that to one chip."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.model.helpers import engine_of, pcc, random_pages, random_prompt, run_forced
from tests.tiny_models import TinyCheckpoint, tiny_config

CONFIG = dataclasses.replace(
    tiny_config("llama"),
    dim=512, num_heads=64, num_kv_heads=8, head_dim=128, hidden_dim=6000, num_layers=2,
)  # fmt: skip
CHECKPOINT = TinyCheckpoint(CONFIG)
PROMPT = random_prompt(CONFIG.vocab_size, 70)
NEAR_TIE = 0.02  # logits here lie between 2 and 5, where a step of bfloat16 is 0.016 or 0.031
FORCED = random_prompt(CONFIG.vocab_size, 5, seed=1)


def _run(device: str, **options: Any) -> tuple[torch.Tensor, int]:
    with engine_of(CHECKPOINT, device, batch=2, **options) as engine:
        ring = engine.model.sharding.ring_cores
        return run_forced(engine, PROMPT, FORCED, random_pages(engine)), ring


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    logits, ring = _run("TG", fused=False)
    assert ring is None
    return logits


@pytest.mark.parametrize("trace", [True, False])
def test_a_fused_step_computes_what_the_plain_one_computes(
    plain: torch.Tensor, trace: bool
) -> None:
    logits, ring = _run("TG", trace=trace)
    assert ring == 24
    chosen = plain.gather(-1, logits.argmax(-1, keepdim=True))
    assert (plain.max(-1, keepdim=True).values - chosen).max() <= NEAR_TIE
    assert min(pcc(a, b) for a, b in zip(logits, plain, strict=True)) >= 0.9999
