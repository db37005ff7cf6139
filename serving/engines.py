"""What both plugins need of an engine: its settings by slot, and a warm start before requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

import backends
from models.sharding import BUCKET
from runtime.chunking import bucket_length
from runtime.paging import NO_BLOCK
from runtime.requests import in_turns
from runtime.sampling import GREEDY, DeviceSampling, Draws, SamplingParams, device_sampling

if TYPE_CHECKING:
    from runtime.requests import Engine

SPARE_PAGE = 0  # vLLM never gives it to a request


def placed(users: Mapping[int, tuple[SamplingParams, Draws]], slots: int) -> DeviceSampling:
    """The device's settings for its next step, each user in its slot; takes a draw of each."""
    params, seeds = [GREEDY] * slots, [0] * slots
    for slot, (settings, draws) in users.items():
        params[slot], seeds[slot] = settings, draws.next_seed
        draws.count += 1
    sampling = device_sampling(params, seeds)
    assert sampling is not None, "device_params let pass what the device cannot do"
    return sampling


def warm_up(engine: Engine, *, sample_on_device: bool = False, warm_prompts: int = 0) -> None:
    """Prefill and decode into the spare page, then forget it.

    Twice where programs that are compiled later make traces stale that were recorded before. Those
    of prompts of up to `warm_prompts` tokens are compiled, too, whole ones and cached beginnings.
    """
    assert engine.block_size is not None, "served caches are paged"
    users = engine.max_batch_size
    width = -(-engine.max_seq_len // engine.block_size)
    pages = torch.full((users, width), NO_BLOCK, dtype=torch.int32)
    pages[:, 0] = SPARE_PAGE
    settings: list[DeviceSampling | None] = [None]
    if sample_on_device:
        # a trace that draws can also take the likeliest
        draws = SamplingParams(temperature=1.0, top_k=32, top_p=1.0), Draws()
        settings.append(placed({0: draws}, users))
    _warm_once(engine, pages, settings)
    if warm_prompts and backends.selected() != "emulator":  # which compiles nothing
        compile_lengths(engine, pages, warm_prompts)
    if any(trace.is_stale for trace in engine.held_traces()):
        _warm_once(engine, pages, settings)
    engine.reset()


def _warm_once(
    engine: Engine, pages: torch.Tensor, settings: Sequence[DeviceSampling | None]
) -> None:
    # the emulator compiles nothing: there one prompt warms as well as many
    counts = {1} if backends.selected() == "emulator" else {1, engine.max_batch_size}
    for count in sorted(counts):
        in_turns([engine.prefilling([[0]] * count, slots=list(range(count)), page_table=pages)])
    _decode_thrice(engine, pages, settings)
    if getattr(engine, "vision", None) is not None:
        from runtime.images import blank_image

        seeing: Any = engine
        prompt = [seeing.vision.image_token]
        seeing.attach(0, prompt, [blank_image(seeing.vision)])
        in_turns([engine.prefilling([prompt], slots=[0], page_table=pages)])
        _decode_thrice(engine, pages, settings)


def compile_lengths(engine: Any, pages: torch.Tensor, longest: int) -> None:
    """Prefill prompts of every padded length up to `longest`, in as few layers as there can be.

    As many together as may be, and one after 128 and 256 cached tokens: attention may go in other
    blocks there.
    """
    from runtime.engine import BATCHED_PREFILL_TOKENS  # needs a chosen backend

    room = min(longest, engine.max_prefill_chunk, engine.max_seq_len)
    lengths = sorted({bucket_length(tokens) for tokens in range(BUCKET, room + 1, BUCKET)})
    traced, engine.enable_trace = engine.enable_trace, False
    try:
        with engine.model.one_layer_of_each_kind():
            for length in tqdm(lengths, "programs of prompts", leave=False):
                together = min(engine.max_batch_size, BATCHED_PREFILL_TOKENS // length)
                for users in range(1, max(1, together) + 1):
                    prompts, slots = [[0] * min(length, engine.max_seq_len)] * users, range(users)
                    engine.prefill(prompts, slots=list(slots), page_table=pages)
                for start in (BUCKET, 2 * BUCKET):
                    prompt = [0] * min(start + length, engine.max_seq_len)
                    if bucket_length(len(prompt) - start) == length:
                        engine.prefill(
                            [prompt], slots=[0], page_table=pages, start_positions=[start]
                        )
    finally:
        engine.enable_trace = traced


def _decode_thrice(
    engine: Engine, pages: torch.Tensor, settings: Sequence[DeviceSampling | None]
) -> None:
    """Compile, record the trace, replay it: once for each kind of result."""
    tokens = torch.zeros(engine.max_batch_size, dtype=torch.int32)
    for sampling in settings:
        for position in range(1, 4):
            positions = torch.full((engine.max_batch_size,), position, dtype=torch.int32)
            engine.decode(tokens, positions, page_table=pages, sampling=sampling)
