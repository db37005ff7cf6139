"""The default model in bfloat16 and HiFi4 against HF float32 on real prompts, step by step."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.helpers import engine_of, hf_logits, pcc, random_pages, run_forced

SAMPLE_PROMPTS = Path(__file__).parents[2] / "sample_prompts"
NEAR_TIE = 0.2  # logits between HF's two best tokens; below it rounding may choose either


@functools.cache
def _checkpoint() -> Any:
    from models.checkpoints.open import open_checkpoint

    return open_checkpoint("default")


@functools.cache
def _reference(dtype: torch.dtype) -> Any:
    from models.checkpoints.reference import build_reference

    return build_reference(_checkpoint(), dtype=dtype)


@functools.cache
def _prompts() -> list[list[int]]:
    from models.checkpoints.default_model import default_model_path
    from runtime.prompts import load_prompts
    from runtime.tokenizer_files import load_tokenizer

    tokenizer = load_tokenizer(default_model_path())
    prompts = load_prompts(SAMPLE_PROMPTS / "input_data_questions_prefill_128.json", instruct=True)
    return [tokenizer.encode(prompt.text, instruct=True) for prompt in prompts[:10]]


def _greedy(reference: Any, prompt: list[int], steps: int) -> list[int]:
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, min_new_tokens=steps,
            do_sample=False,
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def _check(prompt: list[int], steps: int) -> None:
    """Logits after the prompt and after each of HF's own greedy tokens."""
    forced = _greedy(_reference(torch.float32), prompt, steps)
    whole = prompt + forced
    expected = hf_logits(_reference(torch.float32), whole, steps + 1)
    rounded = hf_logits(_reference(torch.bfloat16), whole, steps + 1)
    with engine_of(_checkpoint()) as engine:
        got = run_forced(engine, prompt, forced, random_pages(engine))
    best = expected.topk(2, dim=-1)
    gaps = best.values[:, 0] - best.values[:, 1]
    near_tie = (gaps < NEAR_TIE) | (rounded.argmax(-1) != best.indices[:, 0])
    assert min(pcc(a, b) for a, b in zip(got, expected, strict=True)) >= 0.999
    assert bool(((got.argmax(-1) == best.indices[:, 0]) | near_tie).all())


def test_logits_and_greedy_tokens_agree_with_hf() -> None:
    _check(_prompts()[0], steps=16)


@pytest.mark.full
@pytest.mark.parametrize("index", range(10))
def test_64_steps_of_every_prompt_agree_with_hf(index: int) -> None:
    _check(_prompts()[index], steps=64)
