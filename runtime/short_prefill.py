"""Prefill of short prompts from a trace: one for each number of prompts and bucket of lengths.

Every input lies in a buffer of its own that lives as long as the trace and is written before each
replay; what chips send each other goes into buffers that stay, too, where a mesh keeps any. Long
prompts are not traced: their ops take longer than the host needs to send the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from backends import ttnn
from models.collectives_kept import LONGEST_KEPT, MOST_SHAPES, KeptResults
from models.kv_cache import CacheAddress
from runtime.inputs import InputPlacer
from runtime.traces import Trace

LONGEST = LONGEST_KEPT  # tokens of a bucket that is traced
# Prefills after which a shape that was not asked for leaves its place. What takes a place has all
# traces recorded anew, decode's, too: shapes that come by turns are not to throw each other out.
PATIENCE = 256


class ShortPrefills:
    """The short prefills of an engine, by the number of prompts and their padded length.

    What a trace writes to is free to the allocator, so buffers come before all traces:
    `release_traces` is called before a new shape's are made. It is not kept: an engine that is in a
    circle with its own parts would stay in memory, weights and all, when nobody has it any more.
    """

    def __init__(self, model: Any, place: InputPlacer, length: int) -> None:
        """`length`: the longest padded prompt that a page table has room for."""
        self.model, self.place, self.length = model, place, length
        self.shapes: dict[tuple[int, int], ShortPrefill] = {}  # the longest unused first
        self.asked = 0  # prefills so far
        self.last_asked: dict[tuple[int, int], int] = {}  # of the shapes that have a place

    def has_place(self, users: int, length: int, *, release_traces: Callable[[], None]) -> bool:
        """Whether prompts of this shape are run here: places are for those that come often.

        To be asked before each `run`, once.
        """
        shape, self.asked = (users, length), self.asked + 1
        if shape not in self.shapes and len(self.shapes) >= MOST_SHAPES:
            oldest = next(iter(self.shapes))
            if self.asked - self.last_asked[oldest] <= PATIENCE:
                return False
            release_traces()
            del self.shapes[oldest], self.last_asked[oldest]
        self.last_asked[shape] = self.asked
        return True

    def traces(self) -> list[Trace]:
        return [prefill.trace for prefill in self.shapes.values()]

    def run(
        self,
        ids: torch.Tensor,
        turns: torch.Tensor,
        last: torch.Tensor,
        pages: torch.Tensor,
        *,
        traced: bool,
        release_traces: Callable[[], None],
    ) -> Any:
        """Logits of prompts ids [users, padded length], as ShortPrefill.run gives them."""
        users, length = ids.shape
        if (users, length) not in self.shapes:
            release_traces()
            options = self.model.options
            self.shapes[users, length] = ShortPrefill(
                self.model,
                self.place,
                users=users,
                turns=turns,
                blocks=-(-self.length // options.cache.block_size),
            )
        self.shapes[users, length] = self.shapes.pop((users, length))
        return self.shapes[users, length].run(ids, turns, last, pages, traced=traced)


class ShortPrefill:
    """Prompts of one padded length, in buffers of their own."""

    def __init__(
        self, model: Any, place: InputPlacer, *, users: int, turns: torch.Tensor, blocks: int
    ) -> None:
        """`turns`: rows of the rotary tables at first; `blocks`: pages of a user."""
        self.model, self.users = model, users
        zeros = torch.zeros(1, 1, 1, users * len(turns), dtype=torch.int32)
        self.ids = place.buffer(zeros, ttnn.uint32)
        self.turns = place.buffer(turns.to(torch.int32)[None], ttnn.uint32)
        self.last = place.buffer(torch.zeros(1, users, dtype=torch.int32), ttnn.uint32)
        self.pages = place.buffer(torch.full((users, blocks), -1, dtype=torch.int32), ttnn.int32)
        self.rows = place.buffer(torch.arange(users, dtype=torch.int32), ttnn.int32)
        # of many prompts together they would hold as much as all else for little: links bind there
        self.results = KeptResults() if users * len(turns) <= LONGEST else None
        self.trace = Trace(model.mesh)

    def run(
        self,
        ids: torch.Tensor,
        turns: torch.Tensor,
        last: torch.Tensor,
        pages: torch.Tensor,
        *,
        traced: bool,
    ) -> Any:
        """Logits of the rows `last` of ids [users, length]; `pages` as page tables have them.

        `turns`: rows of the rotary tables, one for each padded token.
        """
        self.ids.write(ids.reshape(self.ids.values.shape))
        self.turns.write(turns.to(torch.int32)[None])
        self.last.write(last.to(torch.int32)[None])
        own = torch.full_like(self.pages.values, -1)
        own[:, : pages.shape[1]] = pages[:, : own.shape[1]]
        self.pages.write(own)
        if traced and self.trace.captured:
            return self.trace.execute()
        out = self._pass()  # compiles every program that the trace will hold
        if traced:
            self.trace.capture(self._pass)
        return out

    def _pass(self) -> Any:
        at = CacheAddress(
            pages=self.pages.tensor, users=self.rows.tensor if self.users > 1 else None
        )
        with self.model.ccl.keeping(self.results):
            return self.model.prefill(
                self.ids.tensor, self.turns.tensor, at, users=self.users, last_rows=self.last.tensor
            )
