"""A bar for prefill, which can take minutes on long prompts: one tick per layer and pass."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from demo.hooks import wrapped
from runtime.chunking import plan_chunks
from runtime.generator import Generator
from runtime.image_generator import ImageGenerator
from runtime.requests import Step


class ShownGenerator(Generator):
    """A generator that shows how far a prefill is, where somebody watches."""

    def prefill(self, slots: Sequence[int]) -> Step:
        """Prefill as usual, under a bar."""
        if not sys.stderr.isatty():
            return super().prefill(slots)
        lengths = [len(user.request.prompt) for slot in slots if (user := self.users[slot])]
        with layer_bar(self.engines, lengths):
            return super().prefill(slots)


class ShownImageGenerator(ShownGenerator, ImageGenerator):
    """The same for users with images."""


@contextlib.contextmanager
def layer_bar(engines: Sequence[Any], lengths: Sequence[int]) -> Iterator[None]:
    """Count every layer's prefill; the total is known for one user, whose passes are its chunks."""
    layers = [layer for engine in engines for layer in engine.model.layers]
    total = None
    if len(lengths) == 1:
        chunks = plan_chunks(lengths[0], max_chunk=engines[0].max_prefill_chunk)
        total = len(chunks) * len(engines[0].model.layers)
    with tqdm(total=total, desc="prefill", unit="layer", leave=False) as bar:

        def ticking(run: Callable[..., Any]) -> Callable[..., Any]:
            def prefill(*arguments: Any, **named: Any) -> Any:
                result = run(*arguments, **named)
                bar.update()
                return result

            return prefill

        with wrapped(layers, "prefill", ticking):
            yield
