"""Sums and gathers of a prefill that is replayed: results lie in buffers that stay for it.

No chip asks before it sends, since whatever it sends to is there already. Each place in a layer has
buffers of its own, which the next layer's use again: what comes between, along the same axis,
cannot begin before every chip is done with them. A 70B model on a Galaxy keeps 29 KB a token,
which models/footprint.py counts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from backends import ttnn

LONGEST_KEPT = 1024  # tokens of a prefill whose results are kept
MOST_SHAPES = 8  # replayed prefills, each with buffers of its own; the first made goes first
TURNS = 2  # sets of semaphores: an op may begin while another chip still ends the one before


class KeptResults:
    """Buffers by place, shape and format, made where they are first asked for."""

    def __init__(self, small: Collection[str] = ()) -> None:
        """`small`: places whose buffers lie in L1, a few KiB of each core."""
        self.tensors: dict[Any, Any] = {}
        self.small = small

    def place(self, name: str, shape: list[int], dtype: Any, mesh: Any) -> Any:
        key = (name, tuple(shape), str(dtype))
        if key not in self.tensors:
            memory = ttnn.L1_MEMORY_CONFIG if name in self.small else ttnn.DRAM_MEMORY_CONFIG
            self.tensors[key] = ttnn.empty(shape, dtype, ttnn.TILE_LAYOUT, mesh, memory)
        return self.tensors[key]

    def holds(self, x: Any) -> bool:
        """Whether `x` lies in one of the buffers."""
        address = x.buffer_address()
        return any(kept.buffer_address() == address for kept in self.tensors.values())


def semaphores(mesh: Any) -> list[list[Any]]:
    """Sets that take turns along one axis, with all that an op may ask for."""
    grid = mesh.compute_with_storage_grid_size()
    last = ttnn.CoreCoord(grid.x - 1, grid.y - 1)
    cores = ttnn.CoreRangeSet([ttnn.CoreRange(ttnn.CoreCoord(0, 0), last)])
    return [[ttnn.create_global_semaphore(mesh, cores, 0) for _ in range(3)] for _ in range(TURNS)]


class KeptCollectives:
    """What GridMesh hands over while a prefill's buffers are known; `links` are its."""

    def __init__(self, mesh: Any, links: Any) -> None:
        self.mesh, self.links, self.turn = mesh, links, [0, 0]
        self.semaphores = [semaphores(mesh), semaphores(mesh)]
        self.results: KeptResults | None = None

    def next(self, axis: int) -> list[Any]:
        """Semaphores of the next op along an axis."""
        self.turn[axis] = (self.turn[axis] + 1) % TURNS
        return self.semaphores[axis][self.turn[axis]]

    def takes(self, x: Any, axis: int) -> bool:
        """Whether results are kept, and `x` parts into whole tiles of its columns."""
        chips = tuple(self.mesh.shape)[axis]
        return self.results is not None and x.shape[3] % (chips * ttnn.TILE_SIZE) == 0

    def gather(self, x: Any, dim: int, axis: int, name: str) -> Any:
        assert self.results is not None
        shape = list(x.shape)
        shape[dim] *= tuple(self.mesh.shape)[axis]
        whole = self.results.place(f"{name} whole", shape, x.dtype, self.mesh)
        return ttnn.experimental.all_gather_async(
            x,
            dim,
            axis,
            self.mesh,
            self.links.gather_topology(name),
            self.next(axis)[:2],
            persistent_output_tensor=whole,
            num_links=self.links.num_links[axis],
            memory_config=whole.memory_config(),
        )

    def scatter(self, x: Any, axis: int, name: str) -> Any:
        """This chip's columns of the sum along an axis."""
        assert self.results is not None
        shape = list(x.shape)
        room = self.results.place(f"{name} parts", shape, x.dtype, self.mesh)
        shape[3] //= tuple(self.mesh.shape)[axis]
        share = self.results.place(f"{name} share", shape, x.dtype, self.mesh)
        return ttnn.experimental.reduce_scatter_minimal_async(
            x,
            [room, share],
            3,
            self.next(axis),
            num_links=self.links.num_links[axis],
            memory_config=share.memory_config(),
            topology=self.links.reduce_topology,
            cluster_axis=axis,
        )

    def total(self, x: Any, axis: int, name: str, more: Any = None) -> Any:
        """The sum along an axis, whole on every chip; each adds `more` to its columns first."""
        share = self.scatter(x, axis, name)
        if more is not None:
            share = ttnn.add(share, more, memory_config=share.memory_config())
        return self.gather(share, 3, axis, name)
