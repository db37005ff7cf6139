"""Output projection onto the vocabulary."""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.plans.lm_head import LMHeadPlan
from models.weights import WeightLoader, pad_to


class LMHead:
    """Each chip computes its share of the vocabulary, in pieces that fit into L1."""

    def __init__(self, weights: WeightLoader, plan: LMHeadPlan, ccl: Any) -> None:
        self.plan, self.ccl = plan, ccl
        sizes = weights.sharding
        ways = sizes.ways("vocab")

        def columns(first: int, count: int) -> Any:
            """Columns first..first+count of every chip's share, side by side."""
            rows = pad_to(weights.checkpoint.get("lm_head.weight"), sizes.vocab, sizes.dim)
            shares = rows.reshape(ways, sizes.local_vocab, sizes.dim)
            piece = shares[:, first : first + count].reshape(ways * count, sizes.dim)
            return piece.T[None, None]

        self.pieces = [
            weights.place(
                f"lm_head.{first}",
                lambda first=first, count=count: columns(first, count),
                ("dim", "vocab"),
                dtype=plan.weight_dtype,
                memory=memory,
            )
            for (first, count), memory in zip(plan.pieces, plan.memory, strict=True)
        ]

    def __call__(self, x_11BD: Any) -> Any:
        """Logits [1, 1, B, V] of this chip's share, bfloat16, in DRAM."""
        parts = [
            ttnn.to_memory_config(
                ttnn.linear(x_11BD, weight, **arguments), ttnn.DRAM_MEMORY_CONFIG
            )
            for weight, arguments in zip(self.pieces, self.plan.linear, strict=True)
        ]
        logits = parts[0] if len(parts) == 1 else ttnn.concat(parts, dim=3)
        return self.ccl.sum_columns(logits, "LM_HEAD")
