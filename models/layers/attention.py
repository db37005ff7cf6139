"""Grouped-query attention over a cache."""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.kv_cache import CacheAddress, PagedKVCache
from models.layers.head_norm import HeadNorm
from models.layers.rope import Rotation
from models.plans.attention import AttentionDecode, AttentionPrefill, AttentionWeights
from models.weights import WeightLoader


class Attention:
    """Fused query-key-value projection, rotary embedding, cache, scores, output projection."""

    def __init__(
        self,
        name: str,
        weights: WeightLoader,
        plan: AttentionWeights,
        cache: PagedKVCache,
        ccl: Any,
    ) -> None:
        sizes, config = weights.sharding, weights.sharding.config
        self.cache, self.ccl = cache, ccl
        self.heads = {"num_heads": sizes.local_heads, "num_kv_heads": sizes.local_kv_heads}
        self.num_heads = sizes.local_heads
        self.window = (
            {"sliding_window_size": config.sliding_window} if config.sliding_window else {}
        )
        self.w_qkv = weights.matrix(
            f"{name}.wqkv", weights.fused_qkv(name), ("dim", "heads"), plan.qkv
        )
        self.w_o = weights.matrix(
            f"{name}.wo", weights.output_projection(f"{name}.wo.weight"), ("heads", "dim"), plan.o
        )
        self.b_qkv = None
        if config.qkv_bias:
            bias, axes = weights.fused_qkv_bias(name), (None, "heads")
            self.b_qkv = weights.place(f"{name}.bqkv_share", bias, axes, dtype=ttnn.bfloat16)
        self.head_norms: tuple[HeadNorm, HeadNorm] | None = None
        if config.qk_norm:
            norms = [HeadNorm(f"{name}.{part}", weights) for part in ("q_norm", "k_norm")]
            self.head_norms = (norms[0], norms[1])

    def decode(
        self, x_11BD: Any, rotate: Rotation, at: CacheAddress, plan: AttentionDecode, residual: Any
    ) -> Any:
        ahead = self.ccl.decode.weights_ahead
        qkv = ttnn.matmul(x_11BD, self.w_qkv.decode, **plan.qkv, **ahead)  # linear cannot untilize
        q_1BHW, k_1BKW, v_1BKW = self._own_heads(qkv, plan)
        q_1BHW, k_1BKW = rotate(q_1BHW, k_1BKW)
        self.cache.update(k_1BKW, v_1BKW, at, together=rotate.together)
        mixed_1BHW = self.cache.attend(q_1BHW, at, **plan.scores, **self.window)
        mixed = self._joined(mixed_1BHW, plan)
        out_11BD = ttnn.linear(mixed, self.w_o.decode, **plan.o, **ahead)
        return self.ccl.decode.sum_rows(out_11BD, residual, "WO")

    def _own_heads(self, qkv: Any, plan: AttentionDecode) -> tuple[Any, Any, Any]:
        """Queries, keys and values of the users that this chip attends for."""
        if plan.fused:
            heads = self.ccl.decode.scatter_heads(self._bias(qkv), **self.heads)
        else:
            qkv = self._bias(ttnn.to_memory_config(qkv, plan.heads_input))
            qkv = self.ccl.own_users(self.ccl.sum_columns(qkv, "QKV"))
            heads = ttnn.experimental.nlp_create_qkv_heads_decode(qkv, **self.heads, **plan.heads)
        q_1BHW, k_1BKW, v_1BKW = heads
        return *self._norm_heads(q_1BHW, k_1BKW), v_1BKW

    def _joined(self, mixed_1BHW: Any, plan: AttentionDecode) -> Any:
        """Heads of every user side by side, where the output projection reads them."""
        if plan.fused:
            return self.ccl.decode.join_heads(mixed_1BHW, plan.o_input)
        users = mixed_1BHW.shape[1]
        mixed_1BHW = ttnn.to_memory_config(mixed_1BHW, plan.concat_input)
        mixed = ttnn.experimental.nlp_concat_heads_decode(mixed_1BHW, num_heads=self.num_heads)
        mixed = drop_idle_rows(mixed, users)
        return ttnn.to_memory_config(self.ccl.all_users(mixed), plan.o_input)

    def prefill(
        self,
        x_11SD: Any,
        rotate: Rotation,
        at: CacheAddress,
        plan: AttentionPrefill,
        residual: Any,
        users: int,
    ) -> Any:
        """`x_11SD` holds `users` prompts of equal length one after the other."""
        (qkv,) = self.ccl.column_products(x_11SD, plan.qkv, self.w_qkv.prefill)
        summed = self.ccl.sum_columns(self._bias(qkv), "QKV")
        rows, width = summed.shape[2], summed.shape[3]
        qkv = ttnn.reshape(summed, (users, 1, rows // users, width))
        q_NHSW, k_NKSW, v_NKSW = ttnn.experimental.nlp_create_qkv_heads(
            qkv, **self.heads, transpose_k_heads=False, memory_config=plan.heads
        )
        self.ccl.free(summed)
        q_NHSW, k_NKSW = self._norm_heads(q_NHSW, k_NKSW)
        q_NHSW, k_NKSW = rotate(q_NHSW, k_NKSW)
        k_NKSW, v_NKSW = (ttnn.typecast(x, dtype=self.cache.dtype) for x in (k_NKSW, v_NKSW))
        self.cache.fill(k_NKSW, v_NKSW, at)
        if q_NHSW.dtype != plan.query_dtype:
            q_NHSW = ttnn.typecast(q_NHSW, dtype=plan.query_dtype)
        mixed_NHSW = self.cache.attend_prefill(
            q_NHSW, k_NKSW, v_NKSW, at, ways=plan.ways, **plan.scores, **self.window
        )
        for used in (q_NHSW, k_NKSW, v_NKSW):
            ttnn.deallocate(used)
        mixed = ttnn.experimental.nlp_concat_heads(mixed_NHSW, memory_config=plan.heads)
        if plan.ways > 1:
            mixed = self.ccl.join_queries(mixed)
        mixed = ttnn.reshape(mixed, (1, 1, rows, mixed.shape[3]))
        return self.ccl.row_product(mixed, self.w_o.prefill, plan.o, residual, "WO")

    def _bias(self, qkv: Any) -> Any:
        """The product with this chip's share of the bias, before chips add up their products."""
        bias = self.b_qkv
        return qkv if bias is None else ttnn.add(qkv, bias, memory_config=qkv.memory_config())

    def _norm_heads(self, q: Any, k: Any) -> tuple[Any, Any]:
        if self.head_norms is None:
            return q, k
        norm_q, norm_k = self.head_norms
        return norm_q(q), norm_k(k)


def drop_idle_rows(mixed: Any, users: int) -> Any:
    """Head concatenation pads the users to a tile; go back to the users there are."""
    rows, width = mixed.shape[2], mixed.shape[3]
    if users == rows:
        return mixed
    return ttnn.reshape(mixed, (1, 1, users, width), (1, 1, rows, width))
