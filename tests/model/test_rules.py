"""What must not change a result: the batch, the pages, the cache's kind, traces, chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import ttnn
from backends.op_record import record_ops
from tests.model.helpers import engine_of, pcc, random_pages, random_prompt, run_forced
from tests.tiny_models import TinyCheckpoint, tiny_config

CHECKPOINT = TinyCheckpoint(tiny_config("llama"))
VOCAB = CHECKPOINT.config.vocab_size
PROMPTS = [random_prompt(VOCAB, length, seed=length) for length in (3, 40, 127, 128, 129, 200)]


def _generate(engine: Any, prompts: list[list[int]], steps: int, seed: int = 0) -> torch.Tensor:
    """Logits [steps, users, V] of greedy decoding, each user at its own position."""
    pages = random_pages(engine, seed)
    slots = list(range(len(prompts)))
    logits = [engine.prefill(prompts, slots=slots, page_table=pages)]
    positions = torch.full((engine.max_batch_size,), -1, dtype=torch.int32)
    positions[: len(prompts)] = torch.tensor([len(prompt) for prompt in prompts])
    for _ in range(steps):
        tokens = torch.zeros(engine.max_batch_size, dtype=torch.int32)
        tokens[: len(prompts)] = logits[-1].argmax(-1)
        logits.append(engine.decode(tokens, positions, page_table=pages)[: len(prompts)])
        positions = torch.where(positions >= 0, positions + 1, positions)
    return torch.stack(logits)


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    """Every prompt by itself, batch 1."""
    with engine_of(CHECKPOINT) as engine:
        return [_generate(engine, [prompt], 6)[:, 0] for prompt in PROMPTS]


@pytest.mark.parametrize("batched", [True, False])
def test_a_user_gets_the_same_in_a_batch_of_32_as_alone(
    alone: list[torch.Tensor], batched: bool
) -> None:
    with engine_of(CHECKPOINT, batch=32, num_blocks=512, batched=batched) as engine:
        together = _generate(engine, PROMPTS, 6)
    for user, expected in enumerate(alone):
        assert pcc(together[:, user], expected) > 0.9999
        assert together[:, user].argmax(-1).tolist() == expected.argmax(-1).tolist()


def test_a_dense_cache_gives_what_pages_give(alone: list[torch.Tensor]) -> None:
    with engine_of(CHECKPOINT, batch=8, block_size=None) as engine:
        dense = _generate(engine, PROMPTS, 6)
    for user, expected in enumerate(alone):
        assert pcc(dense[:, user], expected) > 0.9999


def test_the_order_of_pages_changes_nothing() -> None:
    with engine_of(CHECKPOINT, batch=8) as engine:
        assert torch.equal(
            _generate(engine, PROMPTS, 4, seed=1), _generate(engine, PROMPTS, 4, seed=2)
        )


def test_a_traced_step_gives_what_an_untraced_one_gives() -> None:
    with engine_of(CHECKPOINT, batch=8) as engine:
        traced = _generate(engine, PROMPTS, 6)
    with engine_of(CHECKPOINT, batch=8, trace=False) as engine:
        assert torch.equal(traced, _generate(engine, PROMPTS, 6))


@pytest.mark.parametrize("off", [-33, -32, -31, -1, 0, 1, 31, 32, 33])
def test_chunked_prefill_equals_whole_prefill_around_a_chunk_border(off: int) -> None:
    prompt = random_prompt(VOCAB, 256 + off, seed=9)
    forced = random_prompt(VOCAB, 3, seed=10)
    found = []
    for chunk in (4096, 128):
        with engine_of(CHECKPOINT, chunk=chunk) as engine:
            found.append(run_forced(engine, prompt, forced, random_pages(engine)))
    assert min(pcc(a, b) for a, b in zip(*found, strict=True)) >= 0.9999


def test_sampling_on_the_device_is_greedy_where_asked() -> None:
    from runtime.sampling import GREEDY, device_sampling

    with engine_of(CHECKPOINT, batch=8) as engine:
        expected = _generate(engine, PROMPTS, 6).argmax(-1)
        pages = random_pages(engine)
        drawn = [engine.prefill(PROMPTS, slots=list(range(6)), page_table=pages).argmax(-1)]
        positions = torch.tensor([len(p) for p in PROMPTS] + [-1, -1], dtype=torch.int32)
        for _ in range(6):
            tokens = torch.zeros(8, dtype=torch.int32)
            tokens[:6] = drawn[-1]
            out = engine.decode(
                tokens, positions, page_table=pages, sampling=device_sampling([GREEDY] * 8)
            )
            drawn.append(out[:6].long())
            positions = torch.where(positions >= 0, positions + 1, positions)
    assert torch.equal(torch.stack(drawn), expected)


@settings(deadline=None, max_examples=12)
@given(
    max_seq_len=st.integers(33, 700),
    block_size=st.sampled_from([32, 64, 128, None]),
    below=st.integers(0, 40),
    start=st.integers(0, 20),
    users=st.sampled_from([1, 3]),
)
def test_every_prompt_that_fits_max_seq_len_runs_as_where_there_is_more_room(
    max_seq_len: int, block_size: int | None, below: int, start: int, users: int
) -> None:
    length = max(1, max_seq_len - below)
    prompts = [random_prompt(VOCAB, length, seed=user) for user in range(users)]
    cached = 0 if block_size is None else min(start, (length - 1) // block_size) * block_size
    found = []
    for room in (max_seq_len, 1024):
        with engine_of(
            CHECKPOINT,
            batch=4,
            max_seq_len=room,
            block_size=block_size,
            chunk=256 if cached else 4096,
        ) as engine:
            pages, slots = random_pages(engine), list(range(users))
            if cached:
                begun = [prompt[:cached] for prompt in prompts]
                engine.prefill(begun, slots=slots, page_table=pages)
            logits = engine.prefill(
                prompts, slots=slots, page_table=pages, start_positions=[cached] * users
            )
            found.append(logits)
    assert torch.equal(*found)


@pytest.mark.parametrize(("cached", "rows"), [(32, 384), (128, 256), (160, 256), (256, 128)])
def test_what_is_cached_is_never_written_and_computed_again_from_a_buckets_end_alone(
    cached: int, rows: int
) -> None:
    """With other tokens than those in the cache, which would show where they are written."""
    prompt, other = (random_prompt(VOCAB, 300, seed=seed) for seed in (1, 2))
    with engine_of(CHECKPOINT, batch=2) as engine:
        pages, cache = random_pages(engine), engine.model.caches[0]
        kept, own = (pages[0, : cached // 32].long(), pages[0, cached // 32 : 10].long())
        engine.prefill([prompt[:cached]], slots=[0], page_table=pages)
        before = ttnn.to_torch(cache.k)
        with record_ops() as records:
            given = {"page_table": pages, "start_positions": [cached]}
            engine.prefill([other], slots=[0], **given)
        after = ttnn.to_torch(cache.k)
    assert torch.equal(after[kept], before[kept])
    assert not any(torch.equal(after[page], before[page]) for page in own)
    assert next(r for r in records if r.name == "embedding").inputs[0].shape[-1] == rows


@pytest.mark.parametrize("device", ["T3K", "TG"])
def test_the_last_partial_bucket_runs_on_meshes(device: str) -> None:
    prompt = random_prompt(VOCAB, 278)
    found = []
    for room in (300, 1024):
        with engine_of(CHECKPOINT, device, max_seq_len=room) as engine:
            found.append(engine.prefill([prompt], slots=[0], page_table=random_pages(engine)))
    assert torch.equal(*found)
