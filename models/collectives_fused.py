"""Collectives of a fused decode step: what `GridMesh` says, by ops that do more, in fixed buffers.

Chosen where the plan has a ring (plans/fused.py); prefill stays with GridMesh. Buffers are of one
size for all layers, and two semaphores per axis take turns: an op may begin while another chip
still ends the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import ttnn
from models.collectives import gated_products
from models.plans.fused import FusedGrid, fused_grid, sharded
from models.plans.matmul import Kwargs
from models.plans.target import Phase, Target
from models.prefetch import Prefetcher
from models.sharding import TILE, Sharding


@dataclass(frozen=True)
class Sum:
    """The residual stream `x`, and what the next norm adds to it first."""

    x: Any
    added: Any


class FusedMesh:
    """Collectives of decode on an R x C mesh; `links` are GridMesh's."""

    def __init__(
        self, sharding: Sharding, links: Any, mesh: Any, grid: FusedGrid, traffic: Any
    ) -> None:
        """`traffic`: the format in which row-parallel products and inner activations travel."""
        self.sizes, self.links, self.mesh, self.grid = sharding, links, mesh, grid
        self.sub_device = ttnn.SubDeviceId(0)
        self.semaphores = [
            [[ttnn.create_global_semaphore(mesh, grid.workers, 0) for _ in range(2)] for _ in turns]
            for turns in (range(2), range(2))
        ]
        self.turn = [0, 0]
        sizes = sharding
        users = sizes.cols * (TILE // sizes.cols)

        def buffer(shape: list[int], memory: Any, dtype: Any, layout: Any = None) -> Any:
            return ttnn.empty(shape, dtype, layout or ttnn.TILE_LAYOUT, mesh, memory)

        residual = grid.residual.shard_spec
        parts = sharded(residual.grid, sizes.rows * residual.shape[1])
        packets = grid.packets.shard_spec
        width = packets.grid.num_cores() * packets.shape[1]
        self.sums = buffer([1, 1, TILE, sizes.rows * sizes.local_dim], parts, traffic)
        self.packets = buffer([1, 1, TILE, width], grid.packets, traffic)
        self.head_packets = buffer(
            [1, 1, TILE, width], grid.packets, ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT
        )
        self.hidden = buffer([1, 1, TILE, sizes.local_hidden], grid.hidden_whole, traffic)
        self.joined = buffer(
            [1, users, sizes.local_heads, sizes.head_dim],
            grid.joined, ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT,
        )  # fmt: skip
        self.prefetcher: Prefetcher | None = None
        self.stats = buffer([1, 1, TILE, TILE * sizes.cols], grid.stats, ttnn.float32)

    @property
    def weights_ahead(self) -> Kwargs:
        """Where products find weights that were read ahead of time."""
        return {} if self.prefetcher is None else {"global_cb": self.prefetcher.buffer}

    def enter(self, phase: Phase) -> None:
        """Called before every pass, replayed ones too: what a phase needs of the chip."""
        if self.prefetcher is not None:
            self.prefetcher.ready() if phase is Phase.DECODE else self.prefetcher.stop()

    def begin_step(self) -> None:
        """Weights start to come in."""
        if self.prefetcher is not None:
            self.prefetcher.start()

    def _semaphores(self, axis: int) -> Any:
        self.turn[axis] ^= 1
        return self.semaphores[axis][self.turn[axis]]

    def _semaphore(self, axis: int) -> Any:
        return self._semaphores(axis)[0]

    def add(self, x: Any, more: Any, memory: Any) -> Sum:
        """The sum is made by the norm that reads it."""
        return Sum(x, more)

    def norm(self, x: Any, weight: Any, epsilon: float, arguments: Kwargs) -> tuple[Any, Any]:
        """The stream normed, and the stream itself with all that was to be added."""
        residual = x.x if isinstance(x, Sum) else None
        normed = ttnn.fused_rms_minimal(
            x if residual is None else x.added,
            cluster_axis=1,
            mesh_device=self.mesh,
            global_semaphore=self._semaphore(1),
            topology=self.links.gather_topology("LAYERNORM"),
            num_links=1,  # statistics are a tile of each chip
            subdevice_id=self.sub_device,
            residual_input_tensor=residual,  # takes the sum
            epsilon=epsilon,
            weight=weight,
            stats=self.stats,
            **arguments,
        )
        return normed, x if residual is None else residual

    def scatter_heads(self, qkv: Any, num_heads: int, num_kv_heads: int) -> Any:
        """Queries, keys and values of this column's users, summed over the columns."""
        if qkv.layout is not ttnn.ROW_MAJOR_LAYOUT:
            qkv = ttnn.untilize(qkv, memory_config=qkv.memory_config())
        return ttnn.experimental.llama_rs_create_heads(
            qkv,
            self.head_packets,
            3,
            self._semaphore(1),
            self.sub_device,
            1,
            self.mesh,
            self.links.reduce_topology,
            num_links=self.links.num_links[1],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            memory_config=self.grid.heads,
            qkv_memory_config=self.grid.heads,
        )

    def join_heads(self, mixed_1BHW: Any, memory: Any) -> Any:
        """Heads of every user side by side, one user below the other.

        Where no op does both, this gather moves rows in one; all_gather_async takes four, by way of
        DRAM.
        """
        if self.grid.joins_at_once:
            return ttnn.experimental.all_gather_concat(
                mixed_1BHW,
                self.joined,
                1,
                cluster_axis=1,
                mesh_device=self.mesh,
                topology=self.links.gather_topology("WO"),
                multi_device_global_semaphore=self._semaphore(1),
                num_links=self.links.num_links[1],
                num_heads=self.sizes.local_heads,
                memory_config=memory,
                subdevice_id=self.sub_device,
            )
        every = ttnn.all_gather(
            mixed_1BHW,
            1,
            cluster_axis=1,
            output_tensor=self.joined,
            memory_config=self.joined.memory_config(),
            subdevice_id=self.sub_device,
        )
        _, users, heads, width = every.shape
        rows = ttnn.experimental.view(every, (1, 1, users, heads * width))  # a core has a user
        return ttnn.tilize(rows, memory_config=memory, dtype=ttnn.bfloat16)

    def _gather(self, x: Any, dim: int, into: Any, name: str) -> Any:
        return ttnn.experimental.all_gather_async(
            x,
            dim,
            1,
            self.mesh,
            self.links.gather_topology(name),
            self._semaphores(1),
            persistent_output_tensor=into,
            num_links=self.links.num_links[1],
            memory_config=into.memory_config(),
            subdevice_id=self.sub_device,
        )

    def scatter_columns(self, x: Any, name: str) -> Any:
        """Sum over the columns, each keeping its share."""
        return ttnn.experimental.llama_reduce_scatter(
            x,
            self.packets,
            3,
            self._semaphore(1),
            self.sub_device,
            1,
            self.mesh,
            num_links=self.links.num_links[1],
            memory_config=self.grid.hidden,
            topology=self.links.reduce_topology,
        )

    def gated_products(self, x: Any, w_gate: Any, w_up: Any, arguments: Kwargs) -> tuple[Any, Any]:
        """One op, where weights come ahead of time, sums the gate while it makes the other."""
        if self.prefetcher is None:
            return gated_products(self, x, w_gate, w_up, arguments)
        product = dict(arguments)
        memory = product.pop("memory_config")
        gate, up, scattered = ttnn.experimental.llama_rs_matmul(
            x,
            w_gate,
            self.packets,
            3,
            self._semaphore(1),
            1,
            self.mesh,
            self.links.num_links[1],
            self.sub_device,
            second_weight_tensor=w_up,
            topology=self.links.reduce_topology,
            memory_config_rs=self.grid.hidden,
            memory_config_mm=memory,
            **product,
            **self.weights_ahead,
        )
        ttnn.deallocate(gate)
        return scattered, self.scatter_columns(up, "FF3")

    def regather_columns(self, x: Any, name: str) -> Any:
        return self._gather(x, 3, self.hidden, name)

    def sum_rows(self, x: Any, memory: Any, name: str) -> Any:
        """Sum of row-parallel partial products over the rows."""
        return ttnn.experimental.all_reduce_async(
            x,
            self.sums,
            0,
            self.mesh,
            self._semaphore(0),
            dtype=ttnn.bfloat16,
            memory_config=memory,
            topology=self.links.reduce_topology,
            num_links=self.links.num_links[0],
            subdevice_id=self.sub_device,
        )


def fused_mesh(target: Target, links: Any, mesh: Any) -> FusedMesh:
    """The collectives of a model whose layers are like `target`."""
    traffic = target.activation_dtype(ttnn.bfloat8_b)
    return FusedMesh(target.sharding, links, mesh, fused_grid(target), traffic)
