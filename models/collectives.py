"""Sums and gathers between chips, by meaning: the layers never name a mesh axis.

One class per mesh shape. On one chip every method is a move of memory. `LineMesh` (1 x N) keeps
the residual stream fractured and gathers it for norms, but in a decode step of ours whole on every
chip; `GridMesh` (R x C) sums partial products over its columns, splits users over them where there
are enough, and sums row-parallel products over its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from backends import ttnn
from models.collectives_beside import ProductsBeside
from models.collectives_kept import KeptCollectives, KeptResults
from models.collectives_logits import in_dram, padding_shares, step_results
from models.collectives_parts import PartsInPlace
from models.plans.matmul import PrefillLinear, sliced_linear
from models.plans.scattered import Room
from models.plans.target import Target


@dataclass(frozen=True)
class Links:
    """Wires a collective may use; names are the ops a debug run can switch to a line."""

    num_links: tuple[int, int] = (1, 1)  # per mesh axis
    ring: bool = False
    line_reduce: bool = False  # all reduce-scatters as lines
    line_gather: frozenset[str] = frozenset()  # of QKV, WO, FF1, FF3, FF2, LAYERNORM

    def gather_topology(self, name: str) -> Any:
        line = not self.ring or name in self.line_gather
        return ttnn.Topology.Linear if line else ttnn.Topology.Ring

    @property
    def closed(self) -> bool:
        """Whether all that layers send goes round a ring."""
        return self.ring and not self.line_reduce and "LAYERNORM" not in self.line_gather

    @property
    def reduce_topology(self) -> Any:
        line = not self.ring or self.line_reduce
        return ttnn.Topology.Linear if line else ttnn.Topology.Ring


def gated_products(ccl: Any, x: Any, w_gate: Any, w_up: Any, arguments: Any) -> tuple[Any, Any]:
    """Both column-parallel products of a gated block in decode, summed over the columns."""
    gate, up = (ttnn.linear(x, w, **arguments, **ccl.weights_ahead) for w in (w_gate, w_up))
    return ccl.scatter_columns(gate, "FF1"), ccl.scatter_columns(up, "FF3")


class _Mesh:
    """What collectives of all mesh shapes have: the plain ops, and steps that need nothing more."""

    gated_products = gated_products

    def __init__(self, links: Links) -> None:
        self.links = links
        self.fused: Any = None  # those of a fused step, see collectives_fused.py
        self.weights_ahead: dict[str, Any] = {}  # products find theirs in DRAM

    @property
    def decode(self) -> Any:
        """The collectives of a decode step."""
        return self.fused or self

    def enter(self, phase: Any) -> None:
        """Every phase has the whole chip."""

    def begin_step(self) -> None:
        """Weights wait in DRAM."""

    def receiving(self, rooms: Iterable[Room]) -> Any:
        """While long prompts are prefilled, whose products other chips may send parts of."""
        return nullcontext()

    def sum_rows(self, x: Any, memory: Any, name: str) -> Any:
        """Sum of row-parallel partial products, as the residual stream lies."""
        raise NotImplementedError

    def row_product(self, x: Any, w: Any, plan: PrefillLinear, memory: Any, name: str) -> Any:
        """The same sum of the products of a prefill."""
        return self.sum_rows(sliced_linear(x, w, plan), memory, name)

    def column_products(self, x: Any, plan: PrefillLinear, *weights: Any) -> list[Any]:
        """Products of the normed stream of a prefill, which is let go of."""
        products = [sliced_linear(x, w, plan) for w in weights]
        ttnn.deallocate(x)
        return products

    def gather_stats(self, stats: Any, memory: Any) -> Any:
        """Every chip's norm statistics side by side."""
        return self._gather(stats, 3, memory, "LAYERNORM")

    def add(self, x: Any, more: Any, memory: Any) -> Any:
        """The residual stream with what a block adds."""
        return ttnn.add(x, more, memory_config=memory)

    def _gather(self, x: Any, dim: int, memory: Any, name: str) -> Any:
        """The columns' parts side by side."""
        return ttnn.all_gather(
            x,
            dim=dim,
            cluster_axis=1,
            topology=self.links.gather_topology(name),
            num_links=self.links.num_links[1],
            memory_config=memory,
        )

    def _reduce_scatter(self, x: Any, memory: Any) -> Any:
        """The sum over the columns, each with its share of the width."""
        if x.is_sharded():
            x = ttnn.to_memory_config(x, ttnn.L1_MEMORY_CONFIG)
        return ttnn.reduce_scatter(
            x,
            dim=3,
            cluster_axis=1,
            topology=self.links.reduce_topology,
            num_links=self.links.num_links[1],
            memory_config=memory,
        )

    def _all_reduce(self, x: Any, axis: int, memory: Any) -> Any:
        """The sum along a mesh axis, whole on every chip."""
        if x.is_sharded():
            x = ttnn.to_memory_config(x, ttnn.L1_MEMORY_CONFIG)
        return ttnn.all_reduce(
            x,
            cluster_axis=axis,
            topology=self.links.reduce_topology,
            num_links=self.links.num_links[axis],
            memory_config=memory,
        )


class LineMesh(_Mesh):
    """Collectives of a 1 x N mesh; N = 1 needs none.

    On a ring, long products are scattered slice by slice while they are made, and what short ones
    multiply is gathered meanwhile.
    """

    gather_candidates: Any = None  # those of shares of the vocabulary: a plain gather does
    padding: Any = None  # logits are not masked on their way

    def __init__(self, target: Target, links: Links, mesh: Any) -> None:
        super().__init__(links)
        self.chips = target.sharding.num_chips
        self.parts = PartsInPlace(target, mesh) if target.is_whole else None
        in_ring = self.chips > 2 and links.reduce_topology == ttnn.Topology.Ring
        self.beside: Any = ProductsBeside(mesh, links) if in_ring else None

    @contextmanager
    def keeping(self, results: KeptResults | None) -> Iterator[None]:
        """Results of a line are made anew."""
        yield

    def free(self, x: Any) -> None:
        """Let go of a result."""
        ttnn.deallocate(x)

    def receiving(self, rooms: Iterable[Room]) -> Any:
        return super().receiving(rooms) if self.beside is None else self.beside.receiving(rooms)

    def row_product(self, x: Any, w: Any, plan: PrefillLinear, memory: Any, name: str) -> Any:
        if self.beside is None or plan.beside is None:
            return super().row_product(x, w, plan, memory, name)
        return self.beside.product(x, w, plan, memory)

    def column_products(self, x: Any, plan: PrefillLinear, *weights: Any) -> list[Any]:
        """The same of the stream whole, or of this chip's share of it."""
        if plan.behind is not None:
            return self.beside.gathered_products(x, plan, *weights)
        if x.shape[3] < weights[0].shape[2]:
            share, x = x, self._gather(x, 3, ttnn.DRAM_MEMORY_CONFIG, "LAYERNORM")
            ttnn.deallocate(share)
        return super().column_products(x, plan, *weights)

    def begin(self, x: Any, memory: Any) -> Any:
        """Shares of the model width as the residual stream of a decode step lies."""
        if self.parts is None:
            return ttnn.to_memory_config(x, memory)
        return self._gather(x, 3, memory, "LAYERNORM")

    def gather_residual(self, x: Any, memory: Any) -> Any:
        """The whole model width on every chip."""
        whole = self.parts is not None and memory.is_sharded()
        if self.chips == 1 or whole:
            return ttnn.to_memory_config(x, memory)
        return self._gather(x, 3, memory, "LAYERNORM")

    def sum_columns(self, x: Any, name: str) -> Any:
        """Column-parallel products are complete on a line."""
        return x

    scatter_columns = sum_columns
    regather_columns = sum_columns

    def sum_logits(self, x: Any) -> Any:
        """Logits of a share of the vocabulary are complete."""
        return in_dram(x)

    def sum_rows(self, x: Any, memory: Any, name: str) -> Any:
        """Sum of row-parallel partial products, as the residual stream lies."""
        if self.chips == 1:
            return ttnn.to_memory_config(x, memory)
        if self.parts is not None and memory.is_sharded():
            return self.parts.sum(x, memory, self.links)
        return self._reduce_scatter(x, memory)

    def sum_whole(self, x: Any) -> Any:
        """Sum of row-parallel partial products in DRAM, whole on every chip."""
        if self.chips == 1:
            return x
        return self._all_reduce(x, 1, ttnn.DRAM_MEMORY_CONFIG)

    def own_users(self, x: Any) -> Any:
        """Every chip attends for every user."""
        return x

    all_users = own_users


class GridMesh(_Mesh):
    """Collectives of an R x C mesh: rows are axis 0, columns axis 1."""

    def __init__(self, target: Target, links: Links, mesh: Any) -> None:
        super().__init__(links)
        self.mesh = mesh
        # a 0/1 matrix whose rows pick a column's users out of all: exact at full fidelity
        eye, self.pick_own = torch.eye(target.batch)[None, None], None
        if not target.sharding.shared_users:
            by_column = ttnn.ShardTensor2dMesh(mesh, dims=(None, 2), mesh_shape=tuple(mesh.shape))
            self.pick_own = ttnn.from_torch(
                eye, ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=mesh, mesh_mapper=by_column
            )
        self.kept = KeptCollectives(mesh, links)
        self.batch, sizes = target.batch, target.sharding
        self.last = step_results(sizes, self.batch, mesh) if target.is_own else None
        self.padding = padding_shares(sizes, mesh) if target.is_own else None
        self.exact = ttnn.init_device_compute_kernel_config(
            mesh.arch(),
            math_fidelity=ttnn.MathFidelity.HiFi4,
            math_approx_mode=False,
            fp32_dest_acc_en=True,
            packer_l1_acc=True,
        )

    @contextmanager
    def keeping(self, results: KeptResults | None) -> Iterator[None]:
        """While a prefill runs whose results have places of their own."""
        before, self.kept.results = self.kept.results, results
        try:
            yield
        finally:
            self.kept.results = before

    def free(self, x: Any) -> None:
        """Let go of a result, unless it lies where results stay."""
        if self.kept.results is None or not self.kept.results.holds(x):
            ttnn.deallocate(x)

    def _gather(self, x: Any, dim: int, memory: Any, name: str) -> Any:
        if self.kept.results is not None and not memory.is_sharded():
            return self.kept.gather(x, dim, 1, name)
        return super()._gather(x, dim, memory, name)

    def begin(self, x: Any, memory: Any) -> Any:
        """Columns hold their own width."""
        return ttnn.to_memory_config(x, memory)

    def gather_residual(self, x: Any, memory: Any) -> Any:
        """Weights split the width over the columns too, so nothing is gathered."""
        return ttnn.to_memory_config(x, memory)

    def _total(self, x: Any, axis: int, memory: Any, name: str) -> Any:
        """The sum along a mesh axis, in the buffers that keep it where there are any."""
        if self.kept.takes(x, axis):
            return self.kept.total(x, axis, name)
        return self._all_reduce(x, axis, memory)

    def sum_columns(self, x: Any, name: str) -> Any:
        """Sum of partial products over the columns, whole on each chip."""
        return self._total(x, 1, _sum_memory(x), name)

    def sum_logits(self, x: Any) -> Any:
        """Partial logits of all users, read where their product left them, or of some prompts."""
        with self.keeping(self.last if x.shape[2] == self.batch else None):
            if self.kept.takes(x, 1):
                return self.kept.total(x, 1, "LM_HEAD", self.padding)
            return self.sum_columns(in_dram(x), "LM_HEAD")

    def gather_candidates(self, x: Any) -> Any:
        """What the rows found in their shares of the vocabulary, side by side."""
        with self.keeping(self.last):
            return self.kept.gather(x, 3, 0, "candidates")

    def scatter_columns(self, x: Any, name: str) -> Any:
        """Sum over the columns, each keeping its share: half the traffic of a whole sum."""
        if self.kept.takes(x, 1):
            return self.kept.scatter(x, 1, name)
        return self._reduce_scatter(x, _sum_memory(x))

    def regather_columns(self, x: Any, name: str) -> Any:
        return self._gather(x, 3, x.memory_config(), name)

    def sum_rows(self, x: Any, memory: Any, name: str) -> Any:
        """Sum of row-parallel partial products over the rows; columns hold their own width."""
        if memory.is_sharded():
            return ttnn.to_memory_config(self._total(x, 0, ttnn.L1_MEMORY_CONFIG, name), memory)
        return self._total(x, 0, memory, name)

    def join_queries(self, mixed: Any) -> Any:
        """Rows that the columns dealt out, an early and a late piece to each, in their order.

        The last column has the first of the late pieces.
        """
        rows, width = mixed.shape[2], mixed.shape[3]
        halves = [
            ttnn.slice(mixed, [0, 0, first, 0], [1, 1, first + rows // 2, width])
            for first in (0, rows // 2)
        ]
        early = self._gather(halves[0], 2, ttnn.DRAM_MEMORY_CONFIG, "WO")
        semaphores = self.kept.next(1)
        late = ttnn.experimental.all_gather_async_reversed(
            halves[1],
            2,
            1,
            self.mesh,
            self.links.gather_topology("WO"),
            semaphores[:2],
            num_links=self.links.num_links[1],
            memory_config=ttnn.DRAM_MEMORY_CONFIG,
            barrier_semaphore=semaphores[2],
        )
        return ttnn.concat([early, late], dim=2)

    def own_users(self, x: Any) -> Any:
        """Keep the rows of this column's users."""
        return x if self.pick_own is None else ttnn.matmul(
            self.pick_own, x, dtype=ttnn.bfloat16, memory_config=ttnn.L1_MEMORY_CONFIG,
            compute_kernel_config=self.exact,
        )  # fmt: skip

    def all_users(self, x: Any) -> Any:
        """Rows of every user on every column."""
        if self.pick_own is None:
            return x
        x = ttnn.to_memory_config(x, ttnn.DRAM_MEMORY_CONFIG)
        return self._gather(x, 2, ttnn.DRAM_MEMORY_CONFIG, "WO")


def _sum_memory(x: Any) -> Any:
    """Where a sum of `x` goes: results of products that are sharded stay in L1."""
    return ttnn.L1_MEMORY_CONFIG if x.is_sharded() else ttnn.DRAM_MEMORY_CONFIG


def collectives(target: Target, links: Links, mesh: Any) -> LineMesh | GridMesh:
    """The collectives of a mesh shape, for layers like `target`."""
    return (GridMesh if target.sharding.is_2d else LineMesh)(target, links, mesh)
