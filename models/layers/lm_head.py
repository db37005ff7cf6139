"""Output projection onto the vocabulary."""

from __future__ import annotations

import functools
from typing import Any

import torch

from backends import ttnn
from models.checkpoints.base import get_rows
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
            parts = []
            for share in range(ways):
                start = min(share * sizes.local_vocab + first, sizes.config.vocab_size)
                stop = min(start + count, sizes.config.vocab_size)
                rows = get_rows(weights.checkpoint, "lm_head.weight", start, stop)
                parts.append(pad_to(rows, count, sizes.dim))
            return (parts[0] if ways == 1 else torch.cat(parts)).T[None, None]

        self.pieces = [
            weights.place(
                f"lm_head.{first}",
                functools.partial(columns, first, count),
                ("dim", "vocab"),
                dtype=plan.weight_dtype,
                memory=memory,
            )
            for (first, count), memory in zip(plan.pieces, plan.memory, strict=True)
        ]

    def __call__(self, x_11BD: Any) -> Any:
        """Logits [1, 1, B, V] of this chip's share, bfloat16, in DRAM."""
        if self.plan.input is not None:
            x_11BD = ttnn.to_memory_config(x_11BD, self.plan.input)
        if len(self.pieces) == 1:
            return self.ccl.sum_logits(ttnn.linear(x_11BD, self.pieces[0], **self.plan.linear[0]))
        parts = [
            ttnn.to_memory_config(ttnn.linear(x_11BD, weight, **arguments), ttnn.DRAM_MEMORY_CONFIG)
            for weight, arguments in zip(self.pieces, self.plan.linear, strict=True)
        ]
        return self.ccl.sum_logits(ttnn.concat(parts, dim=3))
