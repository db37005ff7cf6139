"""Rotary position embedding: one table of cosines and sines, looked up by position.

Tables are in pair-interleaved (Meta) order: neighbours 2i and 2i+1 turn by the same angle, and
`x @ transformation` maps (a, b) to (-b, a). Checkpoints deliver query and key rows in that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from backends import ttnn
from models.config import ModelConfig
from models.plans.attention import RopePlan, heads_memory
from models.rope_tables import rope_frequencies, short_context
from models.sharding import TILE, round_up


@dataclass(frozen=True)
class Rotation:
    """What one forward pass needs to turn its queries and keys."""

    cos: Any
    sin: Any
    transformation: Any
    decode: bool
    together: bool = False  # queries and keys lie on cores of their own: one op turns both
    folded: bool = False  # heads lie below each other while they are turned, as do the tables

    def __call__(self, q: Any, k: Any) -> tuple[Any, Any]:
        if self.together:
            q, k = ttnn.experimental.rotary_embedding_llama_fused_qk(
                q, k, self.cos, self.sin, self.transformation
            )
            return q, k
        return self._turn(q), self._turn(k)

    def _turn(self, heads: Any) -> Any:
        shape = tuple(heads.shape)
        if self.folded:
            heads = ttnn.reshape(heads, (1, 1, shape[1] * shape[2], shape[3]))
        turned = ttnn.experimental.rotary_embedding_llama(
            heads, self.cos, self.sin, self.transformation, is_decode_mode=self.decode
        )
        return ttnn.reshape(turned, shape) if self.folded else turned


class RotaryEmbedding:
    """Tables of `length` positions in DRAM, replicated on every chip.

    Where short contexts turn by angles of their own, these stand first: the rows of a long one
    begin at `short_context`.
    """

    def __init__(self, mesh: Any, config: ModelConfig, length: int, plan: RopePlan) -> None:
        self.plan = plan
        self.short_context = short_context(config, length)
        cos, sin = rope_tables(config, length)
        self.rows = cos.shape[-2]
        self.cos, self.sin = (_replicated(mesh, t, ttnn.ROW_MAJOR_LAYOUT) for t in (cos, sin))
        turn = torch.zeros(TILE, TILE)
        even = torch.arange(0, TILE, 2)
        turn[even, even + 1] = 1
        turn[even + 1, even] = -1
        memory = heads_memory(1, own=plan.most_cores > 0)
        self.turn_prefill = _replicated(mesh, turn[None, None], ttnn.TILE_LAYOUT, memory)
        turns = turn.repeat(plan.cores, 1)[None, None]
        self.turn_decode = _replicated(mesh, turns, ttnn.TILE_LAYOUT, plan.turn)

    def prefill(self, positions_1S: Any, users: int) -> Rotation:
        """Rotation of `users` prompts of equal length by these rows (uint32)."""
        cos, sin = (self._rows(table, positions_1S) for table in (self.cos, self.sin))
        folded = self.plan.folds(users, positions_1S.shape[1])
        if folded:
            place = {"dim": 2, "memory_config": heads_memory(positions_1S.shape[1])}
            cos, sin = (ttnn.concat([table] * self.plan.heads, **place) for table in (cos, sin))
        return Rotation(cos, sin, self.turn_prefill, decode=False, folded=folded)

    def decode(self, positions_1B: Any) -> Rotation:
        """Rotation of one token per user, one user per core; rows as `looked_up` gives them."""

        def spread(table: Any) -> Any:
            if self.plan.head_rows:
                return self._head_rows(table, positions_1B, self.plan.head_rows)
            rows_1B1W = ttnn.transpose(self._rows(table, positions_1B), 1, 2)
            if self.plan.together:  # the users' rows for their queries, and again for their keys
                rows_1B1W = ttnn.concat([rows_1B1W, rows_1B1W], dim=1)
            return ttnn.interleaved_to_sharded(rows_1B1W, self.plan.tables)

        cos, sin = spread(self.cos), spread(self.sin)
        return Rotation(cos, sin, self.turn_decode, decode=True, together=self.plan.together)

    def _head_rows(self, table: Any, positions: Any, heads: int) -> Any:
        """[1, 2 B, H, W] in rows, where the rotation reads them."""
        layout, memory = ttnn.ROW_MAJOR_LAYOUT, self.plan.tables
        rows = ttnn.embedding(positions, table, layout=layout, memory_config=memory)
        return ttnn.reshape(rows, (1, -1, heads, rows.shape[-1]))

    def _rows(self, table: Any, positions: Any) -> Any:
        rows = ttnn.embedding(positions, table, layout=ttnn.TILE_LAYOUT)
        return ttnn.unsqueeze_to_4D(rows)


def rope_tables(config: ModelConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, 1, rows, padded head_dim], pair-interleaved, float32.

    The rows are the positions, after those of short contexts that turn by angles of their own.
    """
    lengths = [n for n in (short_context(config, length), length) if n]
    cos, sin = zip(*(_tables(config, n) for n in lengths), strict=True)
    return torch.cat(cos, dim=-2), torch.cat(sin, dim=-2)


def _tables(config: ModelConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    inverse_frequencies, attention_factor = rope_frequencies(config, length)
    angles = torch.outer(
        torch.arange(length, dtype=torch.float32),
        torch.as_tensor(inverse_frequencies, dtype=torch.float32),
    ).repeat_interleave(2, dim=-1)
    angles = F.pad(angles, (0, round_up(config.head_dim, TILE) - config.head_dim))
    return (
        (angles.cos() * attention_factor)[None, None],
        (angles.sin() * attention_factor)[None, None],
    )


def _replicated(mesh: Any, tensor: torch.Tensor, layout: Any, memory: Any = None) -> Any:
    return ttnn.from_torch(
        tensor,
        dtype=ttnn.bfloat16,
        layout=layout,
        device=mesh,
        memory_config=memory or ttnn.DRAM_MEMORY_CONFIG,
        mesh_mapper=ttnn.ReplicateTensorToMesh(mesh),
    )
