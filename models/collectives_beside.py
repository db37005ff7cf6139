"""Products of a long prefill on a ring, whose sum is scattered while the next slice is made.

The op never asks whether other chips are ready for what it sends them, so their parts arrive in
rooms that are there before a pass begins, and go when it ends: no chip sends before the gather of
its block is whole, which every chip takes part in after all that lay there is done with. By then
none adds up what arrived for the block before, either: all blocks share the rooms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from backends import ttnn
from models.collectives_kept import semaphores
from models.plans.matmul import PrefillLinear
from models.plans.scattered import Room


class ProductsBeside:
    """What LineMesh hands over where a plan says so; `links` are its."""

    def __init__(self, mesh: Any, links: Any) -> None:
        self.mesh, self.links = mesh, links
        self.turns = cycle(semaphores(mesh))
        self.rooms: dict[Any, Any] = {}

    @contextmanager
    def receiving(self, rooms: Iterable[Room]) -> Iterator[None]:
        """While there is room for other chips' parts."""
        self.rooms = {
            (shape, str(dtype)): self._empty(shape, dtype, ttnn.DRAM_MEMORY_CONFIG)
            for shape, dtype in rooms
        }
        try:
            yield
        finally:
            for room in self.rooms.values():
                ttnn.deallocate(room)
            self.rooms = {}

    def product(self, x_11SK: Any, weight: Any, plan: PrefillLinear, memory: Any) -> Any:
        """This chip's columns of the sum of all chips' products [1, 1, S, N / chips]."""
        assert plan.beside is not None
        length, k = x_11SK.shape[2], x_11SK.shape[3]
        shape = (1, length // plan.rows, plan.rows, weight.shape[3])
        dtype = plan.beside["dtype"]
        arguments = dict(plan.beside)
        whole, share = ttnn.experimental.matmul_reduce_scatter_async(
            ttnn.reshape(x_11SK, (*shape[:3], k)),
            weight,
            persistent_intermediate_buffer=self.rooms[shape, str(dtype)],
            persistent_output_buffer=self._empty(
                (*shape[:3], shape[3] // self.mesh.get_num_devices()), dtype, memory
            ),
            dim=3,
            multi_device_global_semaphore=next(self.turns),
            num_links=self.links.num_links[1],
            memory_config_rs=memory,
            topology=self.links.reduce_topology,
            memory_config_mm=arguments.pop("memory_config"),
            **arguments,
        )
        ttnn.deallocate(whole)
        return ttnn.reshape(share, (1, 1, length, share.shape[3]))

    def _empty(self, shape: tuple[int, ...], dtype: Any, memory: Any) -> Any:
        return ttnn.empty(list(shape), dtype, ttnn.TILE_LAYOUT, self.mesh, memory)
