"""Weights on their way from a checkpoint to the mesh: arrange, pad, convert, place, cache.

A weight is arranged on the host so that an equal cut along each logical axis gives every chip its
part; models/sharding.py says which mesh axis cuts which logical axis. One tensor is in memory at a
time. Next: models/checkpoints for where tensors come from, weight_cache for what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from backends import allocator, ttnn
from models.checkpoints.base import ReadsRows, get_rows
from models.plans.stored import Stored
from models.sharding import TILE, Sharding

_SLICE_ELEMENTS = 16 * 2**20  # of a table read at a time: 64 MiB where it is dequantised


@dataclass(frozen=True)
class Matrix:
    """A weight as each phase multiplies it: one tensor, or two of the same numbers."""

    decode: Any
    prefill: Any


class WeightLoader:
    """Places a checkpoint's tensors on a mesh; `axes` name the logical axes of the last dims."""

    def __init__(self, mesh: Any, sharding: Sharding, checkpoint: Any, cache: Any) -> None:
        self.mesh = mesh
        self.sharding = sharding
        self.checkpoint = checkpoint
        self.cache = cache

    def place(
        self,
        key: str,
        arrange: Callable[[], torch.Tensor],
        axes: tuple[str | None, str | None],
        *,
        dtype: Any,
        layout: Any = None,
        memory: Any = None,
    ) -> Any:
        """Device tensor of the 4D `arrange()`; a warm cache never calls it.

        With a placeholder checkpoint (tensors without data) only the memory is reserved.
        """
        memory = memory or ttnn.DRAM_MEMORY_CONFIG
        layout = layout or ttnn.TILE_LAYOUT
        return self._placed(key, arrange, axes, dtype, layout, lambda at: at(memory))

    def matrix(
        self,
        key: str,
        arrange: Callable[[], torch.Tensor],
        axes: tuple[str | None, str | None],
        stored: Stored,
    ) -> Any:
        """The Matrix of the 4D `arrange()`: converted once, however often it lies on the device."""

        def both(at: Callable[[Any], Any]) -> Matrix:
            decode = at(stored.memory)
            return Matrix(decode, decode if stored.prefill is None else at(stored.prefill))

        return self._placed(key, arrange, axes, stored.dtype, ttnn.TILE_LAYOUT, both)

    def _placed(
        self, key: str, arrange: Callable[[], torch.Tensor], axes: tuple[str | None, str | None],
        dtype: Any, layout: Any, tensors: Callable[[Callable[[Any], Any]], Any],
    ) -> Any:  # fmt: skip
        """What `tensors` makes, given what makes a device tensor in some memory."""
        if getattr(self.checkpoint, "is_placeholder", False):
            whole = arrange()
            return tensors(lambda memory: self._reserve(whole, axes, dtype, layout, memory))

        def build() -> Any:
            with allocator.converting():
                return ttnn.from_torch(
                    arrange(), dtype=dtype, layout=layout, mesh_mapper=self.mapper(axes)
                )

        # one tensor may be wanted in several formats: the cache keeps them apart by name
        key = f"{key}.{str(dtype).rsplit('.', 1)[-1].lower()}"
        return self.cache.tensor(
            key,
            build=build,
            put=lambda host: tensors(
                lambda memory: ttnn.to_device(host, self.mesh, memory_config=memory)
            ),
        )

    def mapper(self, axes: tuple[str | None, str | None]) -> Any:
        """Mesh mapper that cuts the last two dims by their logical axes."""
        dims: list[int | None] = [None, None]
        for dim, logical in zip((-2, -1), axes, strict=True):
            axis = self.sharding.mesh_axes[logical] if logical else None
            if axis is None:
                continue
            if dims[axis] is not None:
                raise ValueError(f"both {axes[0]} and {axes[1]} want mesh axis {axis}")
            dims[axis] = dim
        if dims == [None, None]:
            return ttnn.ReplicateTensorToMesh(self.mesh)
        return ttnn.ShardTensor2dMesh(
            self.mesh, dims=tuple(dims), mesh_shape=(self.sharding.rows, self.sharding.cols)
        )

    def _reserve(
        self,
        whole: torch.Tensor,
        axes: tuple[str | None, str | None],
        dtype: Any,
        layout: Any,
        memory: Any,
    ) -> Any:
        shape = list(whole.shape)
        for dim, logical in zip((-2, -1), axes, strict=True):
            if logical:
                shape[dim] //= self.sharding.ways(logical)
        return ttnn.empty(shape, dtype, layout, self.mesh, memory)

    # --- arrangements: torch [out, in] weights become [1, 1, in, out], padded with zeros

    def transposed(
        self, name: str, rows: int, columns: int, *, gate: str | None = None
    ) -> Callable[[], torch.Tensor]:
        """One matrix as [1, 1, rows, columns]."""
        return lambda: pad_to(self.gated(name, gate).T, rows, columns)[None, None]

    def gated(self, name: str, gate: str | None) -> torch.Tensor:
        """A tensor times the tanh of its gate, if it has one: the device then knows no gates."""
        tensor = self.checkpoint.get(name)
        if gate is None:
            return tensor
        return tensor.float() * self.checkpoint.get(gate).float().tanh()

    def constant(
        self, key: str, shape: Sequence[int], make: Callable[[], torch.Tensor], *, dtype: Any
    ) -> Any:
        """A table [1, 1, rows, columns] that all chips hold alike, in tiles."""
        if getattr(self.checkpoint, "is_placeholder", False):
            return ttnn.empty(
                list(shape), dtype, ttnn.TILE_LAYOUT, self.mesh, ttnn.DRAM_MEMORY_CONFIG
            )
        return self.place(key, make, (None, None), dtype=dtype)

    def table(self, name: str) -> Callable[[], torch.Tensor]:
        """A matrix as it is stored, [1, 1, rows, width], bfloat16; in slices unless it is that.

        So that an embedding is never whole in memory in a wider type than the device keeps.
        """

        def arrange() -> torch.Tensor:
            config = self.sharding.config
            rows, width = config.vocab_size, config.dim
            if config.vision is not None:  # its tokens have rows of their own
                own = torch.cat([self.checkpoint.get(n) for n in (name, "image_embed.weight")])
                return pad_to(own, own.shape[0], self.sharding.dim)[None, None]
            step = rows
            if isinstance(self.checkpoint, ReadsRows):
                step = min(rows, max(1, _SLICE_ELEMENTS // width))
            part = get_rows(self.checkpoint, name, 0, step)
            if step < rows and part.dtype is torch.bfloat16 and self.sharding.dim == width:
                return self.checkpoint.get(name)[None, None]
            whole = part.new_zeros((1, 1, rows, self.sharding.dim), dtype=torch.bfloat16)
            whole[0, 0, :step, :width] = part
            for start in range(step, rows, step):
                stop = min(start + step, rows)
                whole[0, 0, start:stop, :width] = get_rows(self.checkpoint, name, start, stop)
            return whole

        return arrange

    def fused_qkv(self, prefix: str) -> Callable[[], torch.Tensor]:
        """Query, key and value columns interleaved so that each shard holds its own heads."""
        sizes = self.sharding

        def arrange() -> torch.Tensor:
            q, k, v = (self._heads(f"{prefix}.{name}.weight") for name in ("wq", "wk", "wv"))
            parts = []
            for query, kv in zip(sizes.heads.query, sizes.heads.key_value, strict=True):
                parts += [pick_heads(q, query), pick_heads(k, kv), pick_heads(v, kv)]
            fused = torch.cat(parts)  # [shards * local heads * head_dim, dim]
            return pad_to(fused.T, sizes.dim, fused.shape[0])[None, None]

        return arrange

    def query(self, name: str) -> Callable[[], torch.Tensor]:
        """Query columns alone, in the order of the shards' heads."""
        sizes = self.sharding

        def arrange() -> torch.Tensor:
            heads = self._heads(name)
            rows = torch.cat([pick_heads(heads, query) for query in sizes.heads.query])
            return pad_to(rows.T, sizes.dim, rows.shape[0])[None, None]

        return arrange

    def fused_kv(self, prefix: str) -> Callable[[], torch.Tensor]:
        """Key and value columns interleaved so that each shard holds its own heads."""
        sizes = self.sharding

        def arrange() -> torch.Tensor:
            k, v = (self._heads(f"{prefix}.{name}.weight") for name in ("wk", "wv"))
            parts = [pick_heads(part, kv) for kv in sizes.heads.key_value for part in (k, v)]
            fused = torch.cat(parts)
            return pad_to(fused.T, sizes.dim, fused.shape[0])[None, None]

        return arrange

    def fused_qkv_bias(self, prefix: str) -> Callable[[], torch.Tensor]:
        """The bias row that goes with `fused_qkv`: the share of each chip whose products add up."""
        sizes = self.sharding

        def arrange() -> torch.Tensor:
            q, k, v = (self._heads(f"{prefix}.{name}.bias") for name in ("wq", "wk", "wv"))
            parts = []
            for query, kv in zip(sizes.heads.query, sizes.heads.key_value, strict=True):
                parts += [pick_heads(q, query), pick_heads(k, kv), pick_heads(v, kv)]
            whole = torch.cat(parts).reshape(1, 1, 1, -1)
            return whole * (1 / sizes.ways("dim"))  # a power of two: as exact as the whole

        return arrange

    def output_projection(
        self, name: str, *, gate: str | None = None
    ) -> Callable[[], torch.Tensor]:
        """Rows of the output projection in the order of the shards' query heads."""
        sizes = self.sharding

        def arrange() -> torch.Tensor:
            weight = self.gated(name, gate).T  # [heads * head_dim, dim]
            heads = weight.reshape(-1, sizes.config.head_dim, weight.shape[1])
            if sizes.head_dim != heads.shape[1]:
                heads = F.pad(heads, (0, 0, 0, sizes.head_dim - heads.shape[1]))
            rows = torch.cat([pick_heads(heads, query) for query in sizes.heads.query])
            return pad_to(rows, rows.shape[0], sizes.dim)[None, None]

        return arrange

    def _heads(self, name: str) -> torch.Tensor:
        """A projection's rows (or bias) as [heads, padded head_dim, ...]."""
        tensor = self.checkpoint.get(name)
        own = self.sharding.config.head_dim
        heads = tensor.reshape(-1, own, *tensor.shape[1:])
        missing = self.sharding.head_dim - own
        return F.pad(heads, (*(0, 0) * (heads.ndim - 2), 0, missing)) if missing else heads

    def norm(self, name: str) -> Callable[[], torch.Tensor]:
        """A norm weight over the padded width, row-major in tile-wide sticks as the op wants it."""
        sizes = self.sharding

        def arrange() -> torch.Tensor:
            weight = self.checkpoint.get(name).float() * sizes.norm_scale
            return F.pad(weight, (0, sizes.dim - weight.shape[0])).reshape(1, 1, -1, TILE)

        return arrange

    def head_norm(self, name: str) -> Callable[[], torch.Tensor]:
        """The same for the norm of a single head."""
        sizes = self.sharding

        def arrange() -> torch.Tensor:
            weight = self.checkpoint.get(name)
            if sizes.head_dim != weight.shape[0]:
                weight = weight.float() * sizes.head_norm_scale
                weight = F.pad(weight, (0, sizes.head_dim - weight.shape[0]))
            return weight.reshape(1, 1, -1, TILE)

        return arrange


def pad_to(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Zero rows and columns appended."""
    missing = (rows - matrix.shape[0], columns - matrix.shape[1])
    return F.pad(matrix, (0, missing[1], 0, missing[0])) if any(missing) else matrix


def pick_heads(heads: torch.Tensor, wanted: Sequence[int | None]) -> torch.Tensor:
    """The wanted heads' rows one below the other; None gives rows of zeros."""
    blank = torch.zeros_like(heads[0])
    return torch.cat([blank if head is None else heads[head] for head in wanted])
