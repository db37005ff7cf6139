"""An engine whose users may have images: the tower before a prompt, and pages for image keys.

All else is runtime/engine.py's. A user without an image is prefilled as there; a decode step in
which nobody has one runs the text stack alone, from a trace of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from backends import ttnn
from models.kv_cache import NULL_PAGE, CacheAddress, Sight
from models.vision_tables import HIDDEN, patch_rows, picked_rows
from models.vision_transformer import VisionTransformer
from runtime.choices import Result
from runtime.chunking import Chunk, bucket_length
from runtime.engine import Engine
from runtime.images import Image, image_spans
from runtime.paging import NO_BLOCK, BlockPool
from runtime.prompt_pages import Prompt
from runtime.traces import Trace


@dataclass
class Look:
    """A user's images, and where the keys are that its newest token sees."""

    images: Sequence[Image]
    spans: list[tuple[int, int]]  # positions that see each image
    length: int  # of the prompt
    pages: list[int]
    states: Any = None  # of all images while the prompt is being prefilled
    is_filled: bool = False
    num_taken: int = 0  # tokens of the prompt that this prefill is given: it may be cut short

    @property
    def order(self) -> list[int]:
        """Images as their states lie: first those that go on being seen, whose keys are kept."""
        kept = [end == self.length for _, end in self.spans]
        return sorted(range(len(kept)), key=lambda i: not kept[i])

    @property
    def kept_tiles(self) -> int:
        """Tiles that generated tokens see."""
        return sum(
            image.tiles
            for image, (_, end) in zip(self.images, self.spans, strict=True)
            if end == self.length
        )


class ImageEngine(Engine):
    """Prefill and decode of one vision model."""

    def __init__(self, model: VisionTransformer, **options: Any) -> None:
        super().__init__(model, **options)
        self.goes_ahead = False  # what the next step looks at is known when it is asked for
        self.eyes, self.vision = model, model.vision
        self.max_images = model.options.images
        self.page_tokens = model.image_pages.block_size or 0
        width = -(-self.max_images * self.vision.max_tiles * self.vision.tokens // self.page_tokens)
        batch = model.batch
        zeros = torch.zeros(batch, dtype=torch.int32)
        self.image_table = self.place.buffer(
            torch.full((batch, width), NULL_PAGE, dtype=torch.int32), ttnn.int32
        )
        self.image_positions = self.place.buffer(zeros, ttnn.int32)
        self.image_rows = self.place.buffer(
            torch.zeros(1, 1, batch, model.targets[0].residual_width), ttnn.bfloat16,
            layout=ttnn.TILE_LAYOUT,
        )  # fmt: skip
        self.traces_by_sight: tuple[dict[Result, Trace], dict[Result, Trace]] = ({}, {})
        self.looks: dict[int, Look] = {}
        self.is_looking = False
        # images whose states are on the device, and in which place; the first is the first to go
        self.seen: OrderedDict[int, int] = OrderedDict()
        self.shares_images = False  # whether a prompt finds an image that another has brought
        self._renew_pool()

    def _renew_pool(self) -> None:
        # page 0 is the one of zeros
        self.pool = BlockPool(self.eyes.image_pages.num_blocks - 1, self.page_tokens, seed=0)

    # --- who has which images

    def has_room(self, images: Sequence[Image]) -> bool:
        """Whether pages are left for the keys of a user's images."""
        count = self._keys(sum(image.tiles for image in images))
        return not count or self.pool.can_allocate([0] * count, limit=count)

    def attach(self, slot: int, tokens: Sequence[int], images: Sequence[Image]) -> None:
        """Seat a user with images: its pages are taken now, and filled by its prefill."""
        spans = image_spans(tokens, self.vision.image_token)
        look = Look(images, spans, len(tokens), [])
        count = self._keys(look.kept_tiles)
        self.pool.allocate(slot, [0] * count, limit=count)
        look.pages = [block + 1 for block in self.pool.table(slot)]
        self.looks[slot] = look

    def detach(self, slot: int) -> None:
        """Forget a slot's images, if it has any."""
        if self.looks.pop(slot, None) is not None:
            self.pool.free(slot)

    def _keys(self, tiles: int) -> int:
        return tiles * self.vision.tokens

    # --- prefill

    def _groups(self, prompts: list[Any]) -> list[list[Any]]:
        """Users with images one by one, all others as ever."""
        text = [prompt for prompt in prompts if prompt.slot not in self.looks]
        return [*super()._groups(text), *([p] for p in prompts if p.slot in self.looks)]

    def _prefill_alone(self, prompt: Any, page_table: torch.Tensor | None) -> Any:
        look = self.looks.get(prompt.slot)
        if look is None:
            return super()._prefill_alone(prompt, page_table)
        look.states, look.is_filled = self._see(look), False
        look.num_taken = len(prompt.tokens)
        try:
            return super()._prefill_alone(prompt, page_table)
        finally:
            ttnn.deallocate(look.states)
            look.states = None

    def _is_short(self, prompt: Any) -> bool:
        return prompt.slot not in self.looks and super()._is_short(prompt)

    def _see(self, look: Look) -> Any:
        """States of all images of a user, those that stay in sight first."""
        if not self.shares_images:
            self.seen.clear()
        places: list[int] = []
        for number, index in enumerate(look.order):
            image = look.images[index]
            key = image.digest if self.shares_images else number
            if key not in self.seen:
                place = self._free_place(places)
                patches = self._tiles(patch_rows(image.pixels, self.vision))
                self.eyes.see(patches, place=place, layout=image.layout, tiles=image.tiles)
                ttnn.deallocate(patches)
                self.seen[key] = place
            self.seen.move_to_end(key)
            places.append(self.seen[key])
        tiles = [(number, look.images[i].tiles) for number, i in enumerate(look.order)]
        return self.eyes.pick(places, self._ids(picked_rows(self.vision, tiles), rank=2))

    def _free_place(self, wanted: Sequence[int]) -> int:
        """A place for another image's states, of those that this prompt does not want."""
        taken = set(self.seen.values())
        for place in range(len(self.eyes.states)):
            if place not in taken:
                return place
        oldest = next(key for key, place in self.seen.items() if place not in wanted)
        return self.seen.pop(oldest)

    def _address(
        self, prompt: Prompt, page_table: torch.Tensor | None, chunk: Chunk | None
    ) -> CacheAddress:
        at, look = super()._address(prompt, page_table, chunk), self.looks.get(prompt.slot)
        if look is None:
            return at
        whole = min(bucket_length(look.num_taken), self.max_prefill_chunk)
        start, rows = (0, whole) if chunk is None else (chunk.start, chunk.padded_length)
        at_position = torch.arange(start, start + rows)
        sees = torch.stack(
            [(first <= at_position) & (at_position < end) for first, end in look.spans]
        )
        return replace(at, sight=self._sight(look, sees))

    def _sight(self, look: Look, sees: torch.Tensor) -> Sight:
        """What rows of a prompt see: `sees` says which image, [images, rows]."""
        keys = None
        if not look.is_filled:
            look.is_filled = True
            # pages for the keys that are kept; the others are written nowhere
            count = -(-self._keys(sum(image.tiles for image in look.images)) // self.page_tokens)
            table = torch.full((1, count), NO_BLOCK, dtype=torch.int32)
            table[0, : len(look.pages)] = torch.tensor(look.pages, dtype=torch.int32)
            keys = CacheAddress(pages=self.place.device(table, ttnn.int32))
        mask = None
        if len(look.images) > 1:
            tiles = [self._keys(look.images[i].tiles) for i in look.order]
            hidden = torch.cat(
                [~sees[i][:, None].expand(-1, n) for i, n in zip(look.order, tiles, strict=True)], 1
            )
            hidden &= sees.any(0)[:, None]  # who sees nothing is masked by its row
            zeros = torch.zeros(1, 1, *hidden.shape, dtype=torch.bfloat16)
            mask = self._tiles(zeros.masked_fill_(hidden, HIDDEN))
        return Sight(
            rows=self._tiles(sees.any(0).float().reshape(1, 1, -1, 1)),
            keys=keys,
            states=look.states,
            seen=self._keys(sum(image.tiles for image in look.images)),
            mask=mask,
        )

    def _tiles(self, values: torch.Tensor) -> Any:
        # TT-NN lays tiles out on the device, before it converts: float32 takes twice the DRAM
        return self.place.device(values.bfloat16(), ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)

    # --- decode

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, **options: Any) -> torch.Tensor:
        """One token of every slot; users with and without images may be mixed."""
        self.is_looking = any(positions[slot] >= 0 for slot in self.looks)
        self.traces = self.traces_by_sight[self.is_looking]
        if self.is_looking:
            self._write_sight()
        return super().decode(tokens, positions, **options)

    def _write_sight(self) -> None:
        """Where everybody's image keys lie; these buffers change when users come and go."""
        table = torch.full_like(self.image_table.values, NULL_PAGE)
        positions = torch.zeros_like(self.image_positions.values)
        rows = torch.zeros_like(self.image_rows.values)
        for slot, look in self.looks.items():
            table[slot, : len(look.pages)] = torch.tensor(look.pages, dtype=torch.int32)
            positions[slot] = self._keys(look.kept_tiles) - 1
            rows[:, :, slot] = 1
        self.image_table.write(table)
        self.image_positions.write(positions)
        self.image_rows.write(rows)

    def _decode_address(self) -> CacheAddress:
        at = super()._decode_address()
        if not self.is_looking:
            return at
        keys = CacheAddress(pages=self.image_table.tensor, positions=self.image_positions.tensor)
        return replace(at, sight=Sight(rows=self.image_rows.tensor, keys=keys))

    # --- life

    def reset(self) -> None:
        """Forget all users and their images."""
        super().reset()
        self.looks.clear()
        self.seen.clear()
        self._renew_pool()

    def close(self) -> None:
        """Release traces of both kinds; the mesh stays open."""
        super().close()
        for traces in self.traces_by_sight:
            traces.clear()

    def held_traces(self) -> list[Trace]:
        both = [trace for traces in self.traces_by_sight for trace in traces.values()]
        return [*super().held_traces(), *both]
