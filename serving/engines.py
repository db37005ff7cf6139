"""What both plugins need of an engine: its settings by slot, and a warm start before requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

import backends
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


def warm_up(engine: Engine, *, sample_on_device: bool = False) -> None:
    """Prefill and decode into the spare page, then forget it.

    Twice where programs that are compiled later make traces stale that were recorded before.
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


def _decode_thrice(
    engine: Engine, pages: torch.Tensor, settings: Sequence[DeviceSampling | None]
) -> None:
    """Compile, record the trace, replay it: once for each kind of result."""
    tokens = torch.zeros(engine.max_batch_size, dtype=torch.int32)
    for sampling in settings:
        for position in range(1, 4):
            positions = torch.full((engine.max_batch_size,), position, dtype=torch.int32)
            engine.decode(tokens, positions, page_table=pages, sampling=sampling)
