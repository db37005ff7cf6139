"""Every family through our converter and stack agrees with HF transformers, on every mesh."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.checkpoints.reference import build_reference
from runtime.blueprint import LoadOptions
from runtime.generator import Generator
from runtime.loading import load_engines
from runtime.requests import Request
from runtime.settings import Settings
from tests.model.helpers import (
    BF16,
    answers,
    engine_of,
    hf_logits,
    pcc,
    random_pages,
    random_prompt,
    run_forced,
)
from tests.tiny_models import TINY, TinyCheckpoint, tiny_config, write_hf

PROMPT, STEPS = 290, 32  # longer than phi3's original context and mistral's window


@functools.cache
def _expected(family: str) -> tuple[TinyCheckpoint, list[int], torch.Tensor]:
    checkpoint = TinyCheckpoint(tiny_config(family))
    tokens = random_prompt(checkpoint.config.vocab_size, PROMPT + STEPS)
    return checkpoint, tokens, hf_logits(build_reference(checkpoint), tokens, STEPS + 1)


@pytest.mark.parametrize("device", ["N150", "T3K"])
@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("chunk", [4096, 128], ids=["whole", "chunked"])
def test_prefill_and_decode_agree_with_hf(family: str, device: str, chunk: int) -> None:
    checkpoint, tokens, expected = _expected(family)
    with engine_of(checkpoint, device, chunk=chunk) as engine:
        got = run_forced(engine, tokens[:PROMPT], tokens[PROMPT:], random_pages(engine))
    worst = min(pcc(a, b) for a, b in zip(got, expected, strict=True))
    assert worst >= 0.999


@pytest.mark.parametrize("device", ["N150", "T3K"])
def test_contexts_on_both_sides_of_the_trained_length_turn_as_in_hf_side_by_side(
    device: str,
) -> None:
    """Prompts that begin alike, so a cache shared between the two kinds would show, too."""
    checkpoint = TinyCheckpoint(tiny_config("phi3", num_layers=2))
    reference = build_reference(checkpoint)
    requests, expected = [], []
    for number, length in enumerate((70, 290, 100, 252)):  # the trained length is 256
        own = random_prompt(checkpoint.config.vocab_size, length + 8, seed=number)
        tokens = random_prompt(checkpoint.config.vocab_size, 64) + own[64:]
        requests.append(Request(tokens[:length], 9, forced=tokens[length:]))
        expected.append(hf_logits(reference, tokens, 9))
    got: dict[int, list[torch.Tensor]] = defaultdict(list)

    def note(handles: list[int], logits: torch.Tensor) -> None:
        for handle, row in zip(handles, logits, strict=True):
            got[handle].append(row.clone())

    with engine_of(checkpoint, device, batch=2) as engine:
        generator = Generator([engine], on_logits=note, share_prefixes=True)
        chosen = answers(generator, requests)
        assert answers(Generator([engine], sample_on_device=True), requests) == chosen
    for number, wanted in enumerate(expected):
        worst = min(pcc(a, b) for a, b in zip(got[number], wanted, strict=True))
        assert worst >= 0.999, requests[number]


def test_mlp_padding_and_prefill_chunks_follow_the_settings_and_change_no_answer(
    tmp_path: Path,
) -> None:
    checkpoint, tokens, expected = _expected("qwen2")
    directory = write_hf(checkpoint, tmp_path / "model")
    options = LoadOptions(model=str(directory), optimizations=BF16)
    found = []
    for environ in ({}, {"PAD_MLP_CORES": "16", "MAX_PREFILL_CHUNK_SIZE": "4"}):
        with load_engines(options, Settings.from_env(environ)) as loaded:
            (engine,) = loaded.engines
            found.append((engine.model.sharding.hidden, engine.max_prefill_chunk))
            forced = tokens[PROMPT : PROMPT + 4]
            got = run_forced(engine, tokens[:PROMPT], forced, random_pages(engine))
        assert min(pcc(a, b) for a, b in zip(got, expected, strict=False)) >= 0.999
    assert found == [(640, 131072), (1024, 4096)]
    assert len(list((directory / "N150").glob("1x1*"))) == 2  # neither displaced the other's cache


def test_families_run_on_a_galaxy_too() -> None:
    checkpoint, tokens, expected = _expected("llama")
    with engine_of(checkpoint, "TG") as engine:
        got = run_forced(engine, tokens[:PROMPT], tokens[PROMPT : PROMPT + 4], random_pages(engine))
    assert min(pcc(a, b) for a, b in zip(got, expected, strict=False)) >= 0.999


@pytest.mark.parametrize(("family", "head_dim"), [("llama", 80), ("qwen3", 100), ("qwen2", 16)])
@pytest.mark.parametrize("device", ["N150", "T3K"])
def test_heads_that_do_not_fill_tiles_are_padded_and_agree_with_hf(
    family: str, head_dim: int, device: str
) -> None:
    checkpoint = TinyCheckpoint(replace(tiny_config(family, num_layers=2), head_dim=head_dim))
    tokens = random_prompt(checkpoint.config.vocab_size, 70 + 8)
    expected = hf_logits(build_reference(checkpoint), tokens, 9)
    with engine_of(checkpoint, device) as engine:
        got = run_forced(engine, tokens[:70], tokens[70:], random_pages(engine))
    assert min(pcc(a, b) for a, b in zip(got, expected, strict=True)) >= 0.999
