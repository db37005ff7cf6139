"""Empty tensors and memory configs in few words, on the wheel and on the emulator alike."""

from __future__ import annotations

from typing import Any

BANKS = 12  # of an N150


class Maker:
    """Empty tensors on one device, and memory configs, in few words."""

    def __init__(self, ttnn: Any, device: Any) -> None:
        self.t, self.device = ttnn, device

    def __call__(self, *shape: int, dtype: str = "bfloat16", rows: bool = False, memory: Any = None) -> Any:  # fmt: skip  # noqa: E501
        t = self.t
        layout = t.ROW_MAJOR_LAYOUT if rows else t.TILE_LAYOUT
        memory = memory or t.DRAM_MEMORY_CONFIG
        return t.empty(list(shape), getattr(t, dtype), layout, self.device, memory)

    def shards(self, height: int, width: int, columns: int, rows: int, kind: str = "WIDTH") -> Any:
        """Shards of height x width elements on a rectangle of cores."""
        t = self.t
        return t.create_sharded_memory_config(
            (height, width),
            t.CoreGrid(x=columns, y=rows),
            getattr(t.ShardStrategy, kind),
            t.ShardOrientation.ROW_MAJOR,
            use_height_and_width_as_shard_shape=True,
        )

    def banks(self, k: int, n: int) -> Any:
        """A weight's columns dealt out to the DRAM banks."""
        t = self.t
        grid = t.CoreRangeSet({t.CoreRange(t.CoreCoord(0, 0), t.CoreCoord(BANKS - 1, 0))})
        columns = -(-n // (32 * BANKS)) * 32
        spec = t.ShardSpec(grid, [k, columns], t.ShardOrientation.ROW_MAJOR)
        return t.MemoryConfig(t.TensorMemoryLayout.WIDTH_SHARDED, t.BufferType.DRAM, spec)
