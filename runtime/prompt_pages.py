"""Page tables of prefills: which pages a pass writes, and which it reads.

Programs are compiled for shapes and not for places: tables have one width, and a chunk's start is
a number on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from backends import ttnn
from models.kv_cache import CacheAddress
from models.sharding import BUCKET
from runtime.chunking import Chunk, farthest_padding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.inputs import InputPlacer

# Rows of a table that chunks read are whole 32 bytes of DRAM where their start is on the device.
WIDTH = 8


@dataclass(frozen=True)
class Prompt:
    """One user's share of a prefill call."""

    index: int  # in the caller's list
    tokens: Sequence[int]
    slot: int
    cached: int  # leading tokens whose keys and values are there: read, and not written again

    @property
    def start(self) -> int:
        """Where it is computed from: a bucket's end, so that attention takes long blocks.

        Tokens between there and `cached` are padding's, or cost less than short blocks would.
        """
        return self.cached // BUCKET * BUCKET


class PromptPages:
    """Rows of page tables on the device, for prompts of one engine."""

    def __init__(self, place: InputPlacer, block_size: int, max_seq_len: int) -> None:
        """Tables are wide enough for all padding, wherever a prompt of that length begins."""
        self.place, self.block_size = place, block_size
        self.blocks = -(-farthest_padding(max_seq_len) // block_size)

    def written(self, table: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Rows of a page table that has the pages to write alone; others may read the rest."""
        rows = table[[prompt.slot for prompt in prompts]]
        for row, prompt in zip(rows, prompts, strict=True):
            row[: prompt.cached // self.block_size] = -1
        return rows

    def whole(self, table: torch.Tensor, prompts: Sequence[Prompt]) -> CacheAddress:
        """Where prompts are written that are computed from their beginning."""
        users = None
        if len(prompts) > 1:
            users = self.place.device(torch.arange(len(prompts), dtype=torch.int32), ttnn.int32)
        return CacheAddress(
            pages=self._device(self.written(table, prompts), self.blocks), users=users
        )

    def chunk(self, table: torch.Tensor, prompt: Prompt, chunk: Chunk) -> CacheAddress:
        """Where a chunk is written, and all that it sees."""
        first = chunk.start // self.block_size
        count = -(-chunk.padded_length // self.block_size)
        own = self.written(table, [prompt])[:, first : first + count]
        # attention walks over the padding's pages before it is masked: any page will do there
        seen = table[[prompt.slot]].clamp(min=0)
        width = -(-max(self.blocks, table.shape[1]) // WIDTH) * WIDTH
        start = self.place.device(torch.tensor([chunk.start], dtype=torch.int32), ttnn.int32)
        return CacheAddress(
            pages=self._device(seen, width, nowhere=0),
            chunk_pages=self._device(own, count),
            chunk_start=chunk.start,
            chunk_start_there=start,
        )

    def _device(self, rows: torch.Tensor, blocks: int, *, nowhere: int = -1) -> Any:
        wide = torch.full((len(rows), max(blocks, rows.shape[1])), nowhere, dtype=torch.int32)
        wide[:, : rows.shape[1]] = rows
        return self.place.device(wide, ttnn.int32)
