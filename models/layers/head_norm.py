"""Norm of every query or key head by itself: Qwen3's, and that of attention to images."""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.weights import WeightLoader


class HeadNorm:
    """Norm of every head by itself."""

    def __init__(self, name: str, weights: WeightLoader) -> None:
        sizes = weights.sharding
        self.epsilon = sizes.head_norm_eps
        self.weight = weights.place(
            name,
            weights.head_norm(f"{name}.weight"),
            (None, None),
            dtype=ttnn.bfloat16,
            layout=ttnn.ROW_MAJOR_LAYOUT,
        )

    def __call__(self, heads: Any) -> Any:
        memory = heads.memory_config()
        if heads.layout is ttnn.ROW_MAJOR_LAYOUT:
            return self._in_rows(heads, memory)
        if memory.is_sharded():  # the norm wants whole rows in interleaved memory
            heads = ttnn.to_memory_config(heads, ttnn.L1_MEMORY_CONFIG)
        normed = ttnn.rms_norm(heads, epsilon=self.epsilon, weight=self.weight)
        return ttnn.to_memory_config(normed, memory)

    def _in_rows(self, heads_1BHW: Any, memory: Any) -> Any:
        """Heads of a fused step, of users that together fill tiles."""
        _, users, count, width = heads_1BHW.shape
        rows = ttnn.reshape(heads_1BHW, (1, 1, users * count, width))
        tiles = ttnn.tilize(rows, memory_config=ttnn.L1_MEMORY_CONFIG)
        normed = ttnn.rms_norm(tiles, epsilon=self.epsilon, weight=self.weight)
        return ttnn.reshape(ttnn.untilize(normed, memory_config=memory), heads_1BHW.shape)
