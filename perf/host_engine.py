"""Our engine on the emulator as the host's clock sees it: prefills and decode steps in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from runtime.settings import Settings

PROMPT_TOKENS = 128


class Ours:
    """Our engine on the emulator, greedy on the device, traced."""

    def __init__(self, engine: Any, prompts: torch.Tensor, steps: int) -> None:
        self.engine, self.steps = engine, steps
        self.prompts = prompts.tolist()
        batch, self.length = prompts.shape
        blocks = -(-(self.length + steps + 8) // engine.block_size)
        order = torch.randperm(engine.num_blocks, generator=torch.Generator().manual_seed(0))
        self.pages = order[: batch * blocks].reshape(batch, blocks).to(torch.int32)

    def prefill(self) -> torch.Tensor:
        logits = self.engine.prefill(
            self.prompts, slots=list(range(len(self.prompts))), page_table=self.pages
        )
        return logits.argmax(-1).to(torch.int32)

    def decode(self) -> Iterator[float]:
        """Seconds of each traced step after a prefill."""
        return self.decode_after(self.prefill())

    def decode_after(self, token: torch.Tensor) -> Iterator[float]:
        """Seconds of each traced step; two steps before compile and capture."""
        from runtime.sampling import GREEDY, device_sampling

        sampling = device_sampling([GREEDY] * len(token))
        for step in range(self.steps + 2):
            at = torch.full_like(token, self.length + step)
            start = time.perf_counter()
            token = self.engine.decode(token, at, page_table=self.pages, sampling=sampling)
            if step >= 2:
                yield time.perf_counter() - start


@contextmanager
def our_engine(
    batch: int, optimizations: str, device: str = "N150", *, max_seq_len: int = 1024,
    cache: str | None = None, model: str = "default",
) -> Iterator[Any]:  # fmt: skip
    """A model on an emulated device; `cache`: where its converted weights are kept."""
    from models.kv_cache import CacheConfig
    from runtime.blueprint import LoadOptions
    from runtime.loading import load_engines

    options = LoadOptions(
        model=model,
        device=device,
        max_batch_size=batch,
        max_seq_len=max_seq_len,
        cache=CacheConfig(32, max(512, max_seq_len // 32)),
        optimizations=optimizations,
    )
    settings = Settings.from_env()
    if cache is not None:
        settings = replace(settings, cache_path=Path(cache))
    with load_engines(options, settings) as loaded:
        yield loaded.engines[0]


def clock(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def random_prompts(batch: int, vocabulary: int, length: int = PROMPT_TOKENS) -> torch.Tensor:
    """Token ids [batch, length]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (batch, length), generator=generator)
