"""Sums of a decode step on a line: every chip sends its part to all others, and adds up what comes.

One op a sum, which starts once and waits for nobody. Next: collectives.py says where it is used.
"""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.plans.fused import sharded
from models.plans.matmul import by_rows
from models.plans.target import Target
from models.sharding import TILE


class PartsInPlace:
    """L1 in which the parts of all chips of a line arrive to be summed, for good.

    Two buffers with a semaphore each take turns: who begins a sum has every chip's part of the one
    before, so nobody still adds up the one before that.
    """

    def __init__(self, target: Target, mesh: Any) -> None:
        sizes = target.sharding
        self.mesh, self.turn = mesh, 0
        self.summed = by_rows(sizes.local_dim, target.parts_cores, target.spec)
        spec = self.summed.shard_spec
        memory = sharded(spec.grid, sizes.num_chips * spec.shape[1])
        shape, dtype = [1, 1, TILE, sizes.num_chips * sizes.local_dim], target.summed_dtype
        columns, rows = target.spec.compute_grid
        last = ttnn.CoreCoord(columns - 1, rows - 1)
        every = ttnn.CoreRangeSet([ttnn.CoreRange(ttnn.CoreCoord(0, 0), last)])
        self.pairs = [
            (
                ttnn.empty(shape, dtype, ttnn.TILE_LAYOUT, mesh, memory),
                ttnn.create_global_semaphore(mesh, every, 0),
            )
            for _ in range(2)
        ]

    def sum(self, x: Any, memory: Any, links: Any) -> Any:
        """The sum over the line, whole on every chip, in bfloat16."""
        self.turn ^= 1
        buffer, semaphore = self.pairs[self.turn]
        summed = ttnn.experimental.all_reduce_async(
            x,
            buffer,
            1,
            self.mesh,
            semaphore,
            dtype=ttnn.bfloat16,
            memory_config=self.summed,
            topology=links.reduce_topology,
            num_links=links.num_links[1],
        )
        return summed if memory == self.summed else ttnn.to_memory_config(summed, memory)
