"""Attention of text to images: queries of tokens over keys and values of the tower's states.

No rotary positions and no causality: every token sees all of an image, or nothing of it.
"""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.kv_cache import PagedKVCache, Sight
from models.layers.attention import drop_idle_rows
from models.layers.head_norm import HeadNorm
from models.plans.attention import AttentionDecode
from models.plans.cross_attention import CrossPrefill, CrossWeights
from models.plans.matmul import Kwargs, sliced_linear
from models.weights import WeightLoader


class CrossAttention:
    """Keys and values are made once for each image, and kept in pages until its user is done."""

    def __init__(
        self,
        name: str,
        weights: WeightLoader,
        plan: CrossWeights,
        cache: PagedKVCache,
        ccl: Any,
        *,
        gate: str,
    ) -> None:
        sizes = weights.sharding
        self.cache, self.ccl = cache, ccl
        self.num_heads, self.num_kv_heads = sizes.local_heads, sizes.local_kv_heads
        self.head_dim = sizes.head_dim
        self.w_q = weights.place(
            f"{name}.wq",
            weights.query(f"{name}.wq.weight"),
            ("dim", "heads"),
            dtype=plan.dtype,
            memory=plan.q_memory,
        )
        self.w_kv = weights.place(
            f"{name}.wkv",
            weights.fused_kv(name),
            ("dim", "heads"),
            dtype=plan.dtype,
            memory=plan.kv_memory,
        )
        self.w_o = weights.place(
            f"{name}.wo",
            weights.output_projection(f"{name}.wo.weight", gate=gate),
            ("heads", "dim"),
            dtype=plan.o_dtype,
            memory=plan.o_memory,
        )
        self.q_norm, self.k_norm = (HeadNorm(f"{name}.{n}_norm", weights) for n in ("q", "k"))

    def decode(
        self, x_11BD: Any, sight: Sight, q_plan: Kwargs, plan: AttentionDecode, residual: Any
    ) -> Any:
        q_11BW = ttnn.linear(x_11BD, self.w_q, **q_plan)
        q_11BW = ttnn.to_memory_config(q_11BW, ttnn.DRAM_MEMORY_CONFIG)
        users = q_11BW.shape[2]
        q_1BHW = self.q_norm(ttnn.reshape(q_11BW, (1, users, self.num_heads, self.head_dim)))
        assert sight.keys is not None
        mixed_1BHW = self.cache.attend(q_1BHW, sight.keys, **plan.scores)
        mixed_1BHW = ttnn.to_memory_config(mixed_1BHW, plan.concat_input)
        mixed = ttnn.experimental.nlp_concat_heads_decode(mixed_1BHW, num_heads=self.num_heads)
        mixed = ttnn.to_memory_config(drop_idle_rows(mixed, users), plan.o_input)
        # who has no image attends to zeros: this adds nothing, so no rows are masked
        return self.ccl.sum_rows(ttnn.linear(mixed, self.w_o, **plan.o), residual, "WO")

    def prefill(self, x_11SD: Any, sight: Sight, plan: CrossPrefill, residual: Any) -> Any:
        k_1KTW, v_1KTW = self._keys_and_values(sight, plan)
        if sight.keys is not None:
            self.cache.fill(k_1KTW, v_1KTW, sight.keys)
        (q_11SW,) = self.ccl.column_products(x_11SD, plan.q, self.w_q)
        q_1HSW = self.q_norm(split_heads(q_11SW, self.num_heads))
        ttnn.deallocate(q_11SW)
        mixed_1HSW = ttnn.transformer.scaled_dot_product_attention(
            ttnn.typecast(q_1HSW, dtype=plan.query_dtype),
            k_1KTW,
            v_1KTW,
            attn_mask=sight.mask,
            **plan.scores,
        )
        for used in (q_1HSW, k_1KTW, v_1KTW):
            ttnn.deallocate(used)
        mixed_11SW = ttnn.experimental.nlp_concat_heads(
            mixed_1HSW, memory_config=ttnn.DRAM_MEMORY_CONFIG
        )
        out_11SD = self.ccl.row_product(mixed_11SW, self.w_o, plan.o, residual, "WO")
        return ttnn.multiply(out_11SD, sight.rows, memory_config=residual)

    def _keys_and_values(self, sight: Sight, plan: CrossPrefill) -> tuple[Any, Any]:
        """Of the rows that count alone; all rows would be more than there are tokens."""
        kv_11TW = sliced_linear(sight.states, self.w_kv, plan.kv)
        # heads of queries are asked for because the op gives no fewer: they are not used
        _, k_1KTW, v_1KTW = ttnn.experimental.nlp_create_qkv_heads(
            kv_11TW,
            kv_11TW,
            num_heads=2 * self.num_kv_heads,
            num_kv_heads=self.num_kv_heads,
            transpose_k_heads=False,
            memory_config=ttnn.DRAM_MEMORY_CONFIG,
        )
        ttnn.deallocate(kv_11TW)
        end = [1, self.num_kv_heads, sight.seen, self.head_dim]
        k_1KTW, v_1KTW = (ttnn.slice(x, [0, 0, 0, 0], end) for x in (k_1KTW, v_1KTW))
        dtype = self.cache.dtype
        return ttnn.typecast(self.k_norm(k_1KTW), dtype=dtype), ttnn.typecast(v_1KTW, dtype=dtype)


def split_heads(q_11SW: Any, num_heads: int) -> Any:
    """[1, 1, S, H W] to [1, H, S, W]; the op wants keys and values too, and gets queries again."""
    if num_heads == 1:
        return q_11SW
    other, num_others = q_11SW, num_heads // 2
    if num_heads % 2:  # as keys and values of one head: its first two
        width = q_11SW.shape[3] // num_heads
        other = ttnn.slice(q_11SW, [0, 0, 0, 0], [1, 1, q_11SW.shape[2], 2 * width])
        num_others = 1
    return ttnn.experimental.nlp_create_qkv_heads(
        q_11SW,
        other,
        num_heads=num_heads,
        num_kv_heads=num_others,
        transpose_k_heads=False,
        memory_config=ttnn.DRAM_MEMORY_CONFIG,
    )[0]
