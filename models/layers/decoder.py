"""One decoder layer: norm, attention, add; norm, feed-forward, add."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from backends import ttnn
from backends.op_record import scope
from models.kv_cache import CacheAddress, PagedKVCache
from models.layers.attention import Attention
from models.layers.mlp import MLP
from models.layers.norm import RMSNorm
from models.layers.rope import Rotation
from models.plans.attention import attention_decode, attention_prefill, attention_weights
from models.plans.mlp import mlp_decode, mlp_prefill, mlp_weights
from models.plans.norm import norm_plan, residual_memory
from models.plans.target import Phase, Target
from models.weights import WeightLoader

# layers of equal precision share their plans
_attention_decode = lru_cache(maxsize=64)(attention_decode)
_attention_prefill = lru_cache(maxsize=256)(attention_prefill)
_mlp_decode = lru_cache(maxsize=64)(mlp_decode)
_mlp_prefill = lru_cache(maxsize=256)(mlp_prefill)
_residual_memory = lru_cache(maxsize=64)(residual_memory)


class DecoderLayer:
    """Layer `index`, with its own precision (in `target`) and its own cache."""

    def __init__(
        self, index: int, weights: WeightLoader, target: Target, cache: PagedKVCache, ccl: Any
    ) -> None:
        self.name, self.target, self.ccl = f"layers.{index}", target, ccl
        norms = {phase: norm_plan(target, phase) for phase in Phase}
        with scope(self.name):
            self.attention_norm = RMSNorm(f"{self.name}.attention_norm", weights, norms, ccl)
            self.attention = Attention(
                f"{self.name}.attention", weights, attention_weights(target), cache, ccl
            )
            self.ffn_norm = RMSNorm(f"{self.name}.ffn_norm", weights, norms, ccl)
            self.mlp = MLP(f"{self.name}.mlp", weights, mlp_weights(target), ccl)

    def decode(self, x_11BD: Any, rotate: Rotation, at: CacheAddress) -> Any:
        """One token of every user."""
        residual = _residual_memory(self.target, Phase.DECODE)
        with scope(f"{self.name}.attention"):
            plan = _attention_decode(self.target)
            normed, x_11BD = self.attention_norm.decode(x_11BD)
            x_11BD = self.ccl.decode.add(  # what is added has no name to stay in L1 by
                x_11BD, self.attention.decode(normed, rotate, at, plan, residual), residual
            )
        with scope(f"{self.name}.mlp"):
            normed, x_11BD = self.ffn_norm.decode(x_11BD)
            inner = self.mlp.decode(normed, _mlp_decode(self.target), residual)
            return self.ccl.decode.add(x_11BD, inner, residual)

    def prefill(self, x_11SD: Any, rotate: Rotation, at: CacheAddress, users: int) -> Any:
        """`users` prompts (or one chunk of one prompt), one after the other in `x_11SD`."""
        rows = x_11SD.shape[2]
        residual = _residual_memory(self.target, Phase.PREFILL, rows)
        with scope(f"{self.name}.attention"):
            plan = _attention_prefill(self.target, users, rows // users, at.chunk_start or 0)
            normed = self.attention_norm(x_11SD, Phase.PREFILL)
            mixed = self.attention.prefill(normed, rotate, at, plan, residual, users)
            x_11SD = ttnn.add(x_11SD, mixed, memory_config=residual, dtype=ttnn.bfloat16)
            self.ccl.free(mixed)
        with scope(f"{self.name}.mlp"):
            normed = self.ffn_norm(x_11SD, Phase.PREFILL)
            inner = self.mlp.prefill(normed, _mlp_prefill(self.target, rows), residual)
            return ttnn.add(x_11SD, inner, memory_config=residual, dtype=ttnn.bfloat16)
