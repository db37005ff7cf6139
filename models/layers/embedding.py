"""Token embedding: a table look-up that starts the residual stream."""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.weights import WeightLoader


class Embedding:
    """The table lies row-major in DRAM, each chip holding its share of the width."""

    def __init__(self, weights: WeightLoader) -> None:
        # on a chip that is parted, the cores that look up have to be named by where rows go
        self.directly = weights.sharding.ring_cores is not None
        self.table = weights.place(
            "embed",
            weights.table("embed.weight"),
            (None, "residual"),
            dtype=ttnn.bfloat16,
            layout=ttnn.ROW_MAJOR_LAYOUT,
        )

    def __call__(self, tokens: Any, memory: Any) -> Any:
        """Rows of `tokens` (uint32 [1, 1, 1, n]) as [1, 1, n, D], in DRAM or at once in memory."""
        on = memory if self.directly else ttnn.DRAM_MEMORY_CONFIG
        rows = ttnn.embedding(tokens, self.table, layout=ttnn.TILE_LAYOUT, memory_config=on)
        return ttnn.unsqueeze_to_4D(rows)
