"""Long prompts: the default model's full context against HF, windows in chunks, larger pages."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from backends.op_record import record_ops
from models.checkpoints import RandomCheckpoint
from models.layers import decoder
from models.plans import scattered
from tests.model.helpers import engine_of, hf_logits, pcc, random_pages, random_prompt, run_forced
from tests.tiny_models import tiny_config

CONTEXT = 8192
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("length", [161, 256, 400, 513])
def test_a_sliding_window_prefilled_in_chunks_gives_what_it_gives_whole(length: int) -> None:
    checkpoint = RandomCheckpoint(tiny_config("mistral", num_layers=2), seed=0)  # window of 160
    vocab = checkpoint.config.vocab_size
    prompt, forced = random_prompt(vocab, length), random_prompt(vocab, 3, seed=1)
    found = []
    for chunk in (4096, 128):
        with engine_of(checkpoint, chunk=chunk) as engine:
            found.append(run_forced(engine, prompt, forced, random_pages(engine)))
    assert min(pcc(a, b) for a, b in zip(*found, strict=True)) >= 0.9999


def test_pages_of_64_tokens_give_what_pages_of_32_give() -> None:
    checkpoint = RandomCheckpoint(tiny_config("llama-linear", num_layers=2), seed=0)
    vocab = checkpoint.config.vocab_size
    prompt, forced = random_prompt(vocab, 300), random_prompt(vocab, 40, seed=1)
    found = []
    for size in (32, 64):
        with engine_of(checkpoint, chunk=128, block_size=size, num_blocks=4096 // size) as engine:
            found.append(run_forced(engine, prompt, forced, random_pages(engine)))
    assert torch.equal(*found)


@pytest.mark.parametrize("chunk", [4096, 2048])
def test_sums_scattered_beside_their_products_give_what_they_give_after(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Whole or in chunks; the weight is too small to pay, so the plan is told that it is not."""
    config = dataclasses.replace(tiny_config("llama", num_layers=2), dim=256, hidden_dim=768)
    checkpoint = RandomCheckpoint(config, seed=0)
    prompt, forced = random_prompt(config.vocab_size, 4000), random_prompt(config.vocab_size, 2)
    found, names = [], []
    for least in (scattered.LEAST_WEIGHT, 0):
        monkeypatch.setattr(scattered, "LEAST_WEIGHT", least)
        with engine_of(checkpoint, "T3K", max_seq_len=4096, chunk=chunk, ring=True) as engine:
            with record_ops() as records:
                found.append(run_forced(engine, prompt, forced, random_pages(engine)))
            names.append([r.name for r in records])
        decoder._attention_prefill.cache_clear()
        decoder._mlp_prefill.cache_clear()
    assert torch.equal(*found)
    fused = "experimental.matmul_reduce_scatter_async"
    passes = 4000 // chunk + 1
    assert [one.count(fused) for one in names] == [0, 2 * 2 * passes]
    assert [one.count("reduce_scatter") for one in names] == [2 * 2 * passes, 0]


@pytest.mark.parametrize("chunk", [4096, 2048])
def test_queries_that_columns_share_answer_as_one_chip_does(chunk: int) -> None:
    """One prompt whole, or in chunks of which the second sees the first in the cache."""
    config = dataclasses.replace(
        tiny_config("llama", num_layers=2), dim=256, num_heads=32, num_kv_heads=8, head_dim=32
    )
    checkpoint = RandomCheckpoint(config, seed=0)
    prompt = random_prompt(config.vocab_size, 4000)
    found = []
    for device in ("N150", "TG"):
        with engine_of(checkpoint, device, max_seq_len=4096, chunk=chunk) as engine:
            with record_ops() as records:
                logits = engine.prefill([prompt], slots=[0], page_table=random_pages(engine))
            found.append(logits)
            shared = [r for r in records if "ring_distributed" in r.name]
            chunks = 4096 // chunk
            assert len(shared) == (2 * chunks if device == "TG" else 0)
    assert pcc(*found) >= 0.9999


@pytest.mark.full
@pytest.mark.parametrize("chunk", [8192, 2048])
def test_a_prompt_that_fills_the_context_agrees_with_hf_and_takes_no_longer(chunk: int) -> None:
    from models.checkpoints.open import open_checkpoint
    from models.checkpoints.reference import build_reference

    checkpoint = open_checkpoint("default")
    prompt = random_prompt(checkpoint.config.vocab_size, CONTEXT - 1)
    reference = build_reference(checkpoint, attn_implementation="sdpa")
    hf_logits(reference, prompt[:128], 1)
    began = time.process_time()
    expected = hf_logits(reference, prompt, 1)[0]
    reference_s = time.process_time() - began
    with engine_of(checkpoint, max_seq_len=CONTEXT, chunk=chunk) as engine:
        engine.prefill([prompt[:128]], slots=[0], page_table=random_pages(engine))
        began = time.process_time()
        logits = engine.prefill([prompt], slots=[0], page_table=random_pages(engine))[0]
        ours_s = time.process_time() - began
        assert pcc(logits, expected) >= 0.999
        token = logits.argmax().reshape(1).to(torch.int32)
        position = torch.tensor([CONTEXT - 1], dtype=torch.int32)
        last = engine.decode(token, position, page_table=random_pages(engine))[0]
    grown = hf_logits(reference, [*prompt, int(token)], 1)[0]
    assert pcc(last, grown) >= 0.999
    assert ours_s <= reference_s, f"{ours_s:.1f} s of CPU, HF takes {reference_s:.1f} s"


@pytest.mark.full
def test_a_full_context_in_chunks_grows_memory_by_the_cache_and_one_chunk() -> None:
    """And by less than the same prompt takes whole."""
    chunk = 1024
    peaks, cache_mib = _memory(chunk)
    whole, _ = _memory(CONTEXT)
    # the prefix of one layer is gathered from its pages: 12 MiB, several times over
    allowed = peaks[chunk - 1] - peaks[127] + cache_mib + 64
    grown, grown_whole = (found[CONTEXT - 1] - found[127] for found in (peaks, whole))
    assert grown < allowed < grown_whole, (peaks, whole)


def _memory(chunk: int) -> tuple[dict[int, int], float]:
    """MiB: peaks of a process of its own by length of prompt, and its cache."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.long_context_memory", str(chunk)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return {int(length): peak for length, peak in found["peaks_mib"].items()}, found["cache_mib"]
