"""One layer of the tower: norm, attention, add; norm, feed-forward, add. Every row sees every tile.

Global layers have gates, which are in their weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from backends import ttnn
from backends.op_record import scope
from models.layers.layer_norm import LayerNorm
from models.plans.matmul import sliced_linear
from models.plans.vision import VisionPlan, VisionSizes
from models.weights import WeightLoader, pad_to, pick_heads


class VisionBlock:
    """A layer by its name in the checkpoint."""

    def __init__(
        self,
        name: str,
        weights: WeightLoader,
        sizes: VisionSizes,
        plan: VisionPlan,
        ccl: Any,
        *,
        gated: bool,
    ) -> None:
        self.name, self.plan = name, plan
        norm = {"epsilon": sizes.vision.norm_eps, "kernel": plan.norm_kernel}
        gates = [f"{name}.{part}_gate" if gated else None for part in ("attention", "mlp")]
        with scope(name):
            self.attention_norm = LayerNorm(f"{name}.attention_norm", weights, **norm)
            self.attention = VisionAttention(name, weights, sizes, plan, ccl, gate=gates[0])
            self.mlp_norm = LayerNorm(f"{name}.mlp_norm", weights, **norm)
            self.mlp = VisionMLP(name, weights, sizes, plan, ccl, gate=gates[1])

    def __call__(self, x_11RD: Any, mask_11RR: Any) -> Any:
        memory = ttnn.DRAM_MEMORY_CONFIG
        with scope(f"{self.name}.attention"):
            mixed = self.attention(self.attention_norm(x_11RD), mask_11RR)
            x_11RD = ttnn.add(x_11RD, mixed, memory_config=memory, dtype=ttnn.bfloat16)
            ttnn.deallocate(mixed)
        with scope(f"{self.name}.mlp"):
            inner = self.mlp(self.mlp_norm(x_11RD))
            out_11RD = ttnn.add(x_11RD, inner, memory_config=memory, dtype=ttnn.bfloat16)
            ttnn.deallocate(inner)
            ttnn.deallocate(x_11RD)
            return out_11RD


class VisionAttention:
    """Heads are padded to whole tiles with zeros, which change no score and no sum."""

    def __init__(
        self,
        name: str,
        weights: WeightLoader,
        sizes: VisionSizes,
        plan: VisionPlan,
        ccl: Any,
        *,
        gate: str | None,
    ) -> None:
        self.plan, self.ccl, self.num_heads = plan, ccl, sizes.local_heads

        def heads_of(weight: torch.Tensor) -> torch.Tensor:
            """Rows [heads * head_dim, D] as [heads, padded head_dim, D]."""
            heads = weight.reshape(-1, sizes.vision.head_dim, weight.shape[1])
            return F.pad(heads, (0, 0, 0, sizes.head_width - sizes.vision.head_dim))

        def fused() -> torch.Tensor:
            get = weights.checkpoint.get
            q, k, v = (heads_of(get(f"{name}.attention.{n}.weight")) for n in ("wq", "wk", "wv"))
            parts = [
                pick_heads(part, own)
                for query, other in zip(sizes.heads.query, sizes.heads.key_value, strict=True)
                for part, own in ((q, query), (k, other), (v, other))
            ]
            return torch.cat(parts).T[None, None]

        def output() -> torch.Tensor:
            heads = heads_of(weights.gated(f"{name}.attention.wo.weight", gate).T)
            return torch.cat([pick_heads(heads, own) for own in sizes.heads.query])[None, None]

        self.w_qkv = weights.place(
            f"{name}.attention.wqkv", fused, (None, "heads"), dtype=plan.weight_dtype
        )
        self.w_o = weights.place(
            f"{name}.attention.wo", output, ("heads", None), dtype=plan.weight_dtype
        )

    def __call__(self, x_11RD: Any, mask_11RR: Any) -> Any:
        qkv = sliced_linear(x_11RD, self.w_qkv, self.plan.qkv)
        ttnn.deallocate(x_11RD)
        q_1HRW, k_1HRW, v_1HRW = ttnn.experimental.nlp_create_qkv_heads(
            qkv,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            transpose_k_heads=False,
            memory_config=ttnn.DRAM_MEMORY_CONFIG,
        )
        ttnn.deallocate(qkv)
        mixed_1HRW = ttnn.transformer.scaled_dot_product_attention(
            q_1HRW, k_1HRW, v_1HRW, attn_mask=mask_11RR, **self.plan.scores
        )
        for used in (q_1HRW, k_1HRW, v_1HRW):
            ttnn.deallocate(used)
        mixed_11RW = ttnn.experimental.nlp_concat_heads(
            mixed_1HRW, memory_config=ttnn.DRAM_MEMORY_CONFIG
        )
        return self.ccl.sum_whole(sliced_linear(mixed_11RW, self.w_o, self.plan.o))


class VisionMLP:
    """down(gelu(up(x) + bias)) + bias."""

    def __init__(
        self,
        name: str,
        weights: WeightLoader,
        sizes: VisionSizes,
        plan: VisionPlan,
        ccl: Any,
        *,
        gate: str | None,
    ) -> None:
        self.plan, self.ccl = plan, ccl
        dim, hidden = sizes.vision.dim, sizes.hidden

        def row(part: str, width: int, scale: float = 1.0) -> Any:
            bias = weights.gated(f"{name}.mlp.{part}.bias", gate if part == "fc2" else None)
            return pad_to(bias.reshape(1, -1) * scale, 1, width)[None, None]

        self.w_up = weights.place(
            f"{name}.mlp.fc1",
            weights.transposed(f"{name}.mlp.fc1.weight", dim, hidden),
            (None, "hidden"),
            dtype=plan.weight_dtype,
        )
        self.b_up = weights.place(
            f"{name}.mlp.fc1.bias", lambda: row("fc1", hidden), (None, "hidden"),
            dtype=ttnn.bfloat16,
        )  # fmt: skip
        self.w_down = weights.place(
            f"{name}.mlp.fc2",
            weights.transposed(f"{name}.mlp.fc2.weight", hidden, dim, gate=gate),
            ("hidden", None),
            dtype=plan.weight_dtype,
        )
        # every chip adds its share, so that the sum has the bias once
        self.b_down = weights.place(
            f"{name}.mlp.fc2.bias", lambda: row("fc2", dim, 1 / sizes.ways), (None, None),
            dtype=ttnn.bfloat16,
        )  # fmt: skip

    def __call__(self, x_11RD: Any) -> Any:
        inner_11RF = sliced_linear(x_11RD, self.w_up, self.plan.fc1, bias=self.b_up)
        ttnn.deallocate(x_11RD)
        out_11RD = sliced_linear(inner_11RF, self.w_down, self.plan.fc2, bias=self.b_down)
        ttnn.deallocate(inner_11RF)
        return self.ccl.sum_whole(out_11RD)
