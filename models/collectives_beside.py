"""Products of a prefill on a ring, whose sum is scattered or input gathered while they are made.

The ops never ask whether other chips are ready for what they send them, so their parts arrive in
rooms that are there before a pass begins, and go when it ends: no chip sends before a gather of
its block (of the norm's statistics, the first) is whole, which every chip takes part in after all
that lay there is done with. By then none adds up or multiplies what arrived for the block before,
either: all blocks share the rooms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from backends import ttnn
from models.collectives_kept import semaphores
from models.plans.matmul import PrefillLinear, sliced_linear
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

    def gathered_products(self, share: Any, plan: PrefillLinear, first: Any, *rest: Any) -> Any:
        """Products of all chips' shares of the normed stream, gathered beside the first of them."""
        assert plan.behind is not None
        shape = (*tuple(share.shape)[:3], first.shape[2])
        arguments = dict(plan.behind)
        whole, product = ttnn.experimental.all_gather_matmul_async(
            share,
            first,
            persistent_output_buffer=self.rooms[shape, str(share.dtype)],
            dim=3,
            multi_device_global_semaphore=next(self.turns)[:2],
            num_links=self.links.num_links[1],
            topology=ttnn.Topology.Ring,
            memory_config_ag=ttnn.DRAM_MEMORY_CONFIG,
            memory_config_mm=arguments.pop("memory_config"),
            **arguments,
        )
        ttnn.deallocate(share)
        return [product, *(sliced_linear(whole, weight, plan) for weight in rest)]

    def _empty(self, shape: tuple[int, ...], dtype: Any, memory: Any) -> Any:
        return ttnn.empty(list(shape), dtype, ttnn.TILE_LAYOUT, self.mesh, memory)
