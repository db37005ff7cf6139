"""One layer that looks at images: norm, cross-attention, add; norm, feed-forward, add.

Tokens that see no image pass unchanged. The layer's gates are in its weights.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from backends import ttnn
from backends.op_record import scope
from models.kv_cache import CacheAddress, PagedKVCache
from models.layers.cross_attention import CrossAttention
from models.layers.mlp import MLP
from models.layers.norm import RMSNorm
from models.layers.rope import Rotation
from models.plans.cross_attention import cross_decode, cross_prefill, cross_weights
from models.plans.mlp import mlp_decode, mlp_prefill, mlp_weights
from models.plans.norm import norm_plan, residual_memory
from models.plans.target import Phase, Target
from models.weights import WeightLoader

# layers of equal precision share their plans
_cross_decode = lru_cache(maxsize=64)(cross_decode)
_cross_prefill = lru_cache(maxsize=256)(cross_prefill)
_mlp_decode = lru_cache(maxsize=64)(mlp_decode)
_mlp_prefill = lru_cache(maxsize=256)(mlp_prefill)
_residual_memory = lru_cache(maxsize=64)(residual_memory)


class CrossLayer:
    """Cross-attention layer `index`, in the precision of the text layer it runs in front of."""

    def __init__(
        self, index: int, weights: WeightLoader, target: Target, cache: PagedKVCache, ccl: Any
    ) -> None:
        self.name, self.target = f"cross_layers.{index}", target
        vision = target.sharding.config.vision
        assert vision is not None
        self.tile_rows = vision.tile_rows
        norms = {phase: norm_plan(target, phase) for phase in Phase}
        with scope(self.name):
            self.attention_norm = RMSNorm(f"{self.name}.attention_norm", weights, norms, ccl)
            self.attention = CrossAttention(
                f"{self.name}.attention", weights, cross_weights(target), cache, ccl,
                gate=f"{self.name}.attention_gate",
            )  # fmt: skip
            self.ffn_norm = RMSNorm(f"{self.name}.ffn_norm", weights, norms, ccl)
            self.mlp = MLP(
                f"{self.name}.mlp", weights, mlp_weights(target), ccl,
                gate=f"{self.name}.mlp_gate",
            )  # fmt: skip

    def decode(self, x_11BD: Any, rotate: Rotation, at: CacheAddress) -> Any:
        """One token of every user."""
        sight, residual = at.sight, _residual_memory(self.target, Phase.DECODE)
        assert sight is not None
        with scope(f"{self.name}.attention"):
            q_plan, plan = _cross_decode(self.target)
            normed = self.attention_norm(x_11BD, Phase.DECODE)
            mixed = self.attention.decode(normed, sight, q_plan, plan, residual)
            x_11BD = ttnn.add(x_11BD, mixed, memory_config=residual)
        with scope(f"{self.name}.mlp"):
            normed = self.ffn_norm(x_11BD, Phase.DECODE)
            inner = self.mlp.decode(normed, _mlp_decode(self.target), residual)
            inner = ttnn.multiply(inner, sight.rows, memory_config=residual)
            return ttnn.add(x_11BD, inner, memory_config=residual)

    def prefill(self, x_11SD: Any, rotate: Rotation, at: CacheAddress, users: int) -> Any:
        """One prompt, or one chunk of it."""
        sight, residual = at.sight, _residual_memory(self.target, Phase.PREFILL)
        assert sight is not None and users == 1
        rows, states = x_11SD.shape[2], sight.states.shape[2]
        with scope(f"{self.name}.attention"):
            plan = _cross_prefill(self.target, rows, states, self.tile_rows)
            normed = self.attention_norm(x_11SD, Phase.PREFILL)
            mixed = self.attention.prefill(normed, sight, plan, residual)
            x_11SD = ttnn.add(x_11SD, mixed, memory_config=residual, dtype=ttnn.bfloat16)
            ttnn.deallocate(mixed)
        with scope(f"{self.name}.mlp"):
            normed = self.ffn_norm(x_11SD, Phase.PREFILL)
            inner = self.mlp.prefill(normed, _mlp_prefill(self.target, rows), residual)
            inner = ttnn.multiply(inner, sight.rows, memory_config=residual)
            return ttnn.add(x_11SD, inner, memory_config=residual, dtype=ttnn.bfloat16)
