"""The decoder stack with eyes: a vision tower, and layers among the others that look at images.

Without an image in sight the text stack runs alone, op for op as it does without a tower. Read
next: layers/vision/encoder.py, layers/cross_layer.py; runtime/image_engine.py calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backends import ttnn
from backends.op_record import scope
from models.kv_cache import CacheAddress, PagedKVCache, image_pages, kept_images
from models.layers.cross_layer import CrossLayer
from models.layers.vision.encoder import VisionEncoder
from models.plans.attention import attention_weights
from models.plans.norm import residual_memory
from models.plans.target import Phase
from models.transformer import ModelOptions, Transformer
from models.vision_config import VisionConfig


class VisionTransformer(Transformer):
    """One vision model on one line of chips."""

    def __init__(self, mesh: Any, spec: Any, config: Any, *others: Any) -> None:
        super().__init__(mesh, spec, config, *others)
        options: ModelOptions = self.options
        self.vision: VisionConfig = config.vision
        self.image_pages = image_pages(self.vision, options.images, options.max_batch_size)
        self.tower = VisionEncoder(self.weights, self.targets[0], self.ccl)
        # where states stay has to be taken before traces are: what these write to is free
        shape = [1, 1, self.tower.sizes.rows, self.sharding.dim]
        self.states = [
            ttnn.zeros(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh, ttnn.DRAM_MEMORY_CONFIG)
            for _ in range(kept_images(options.images, self.batch))
        ]
        in_front = {
            before: self._cross_layer(number, before)
            for number, before in enumerate(self.vision.cross_before)
            if before in self.indices
        }
        self.all_layers: list[Any] = []
        for index, layer in zip(self.indices, self.layers, strict=True):
            self.all_layers += [in_front[index], layer] if index in in_front else [layer]

    def _cross_layer(self, number: int, before: int) -> CrossLayer:
        """A layer with the precision of the text layer it runs in front of."""
        target = self.targets[self.indices.index(before)]
        sizes = self.sharding
        cache = PagedKVCache(
            self.mesh,
            self.image_pages,
            sizes.local_kv_heads,
            sizes.head_dim,
            attention_weights(target).cache_dtype,
        )
        return CrossLayer(number, self.weights, target, cache, self.ccl)

    def decode(self, tokens_111B: Any, rope_positions_1B: Any, at: CacheAddress) -> Any:
        """As Transformer's; who sees an image is brought to where the residual stream lies."""
        if at.sight is not None:
            residual = residual_memory(self.targets[0], Phase.DECODE)
            with scope("embedding"):
                rows = ttnn.to_memory_config(at.sight.rows, residual)
            at = replace(at, sight=replace(at.sight, rows=rows))
        return super().decode(tokens_111B, rope_positions_1B, at)

    def layers_of(self, at: CacheAddress) -> Sequence[Any]:
        """All layers where an image is in sight, else those of the text stack."""
        return self.layers if at.sight is None else self.all_layers

    def see(self, patches_11RP: Any, *, place: int, layout: int, tiles: int) -> None:
        """What the tower makes of one image [1, 1, R, D] goes into `states[place]`."""
        states_11RD = self.tower(patches_11RP, layout=layout, tiles=tiles)
        with scope("states"):
            ttnn.fill_cache(self.states[place], states_11RD, 0)
            ttnn.deallocate(states_11RD)

    def pick(self, places: Sequence[int], rows_1T: Any) -> Any:
        """States [1, 1, T, D] of the tokens of the images in `places`, rows numbered through."""
        with scope("states"):
            rows_11RD = [
                ttnn.to_layout(self.states[place], ttnn.ROW_MAJOR_LAYOUT) for place in places
            ]
            whole = rows_11RD[0] if len(places) == 1 else ttnn.concat(rows_11RD, dim=2)
            picked = ttnn.embedding(rows_1T, whole, layout=ttnn.TILE_LAYOUT)
            for used in {id(x): x for x in (*rows_11RD, whole)}.values():
                ttnn.deallocate(used)
            return ttnn.unsqueeze_to_4D(picked)
