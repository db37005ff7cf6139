"""Norm by mean and variance, as vision towers have it; rows lie whole on every chip."""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.sharding import TILE
from models.weights import WeightLoader


class LayerNorm:
    """Weight and bias are rows of 32 numbers, as the op wants them."""

    def __init__(self, name: str, weights: WeightLoader, *, epsilon: float, kernel: Any) -> None:
        self.arguments = {"epsilon": epsilon, "compute_kernel_config": kernel}

        def row(part: str) -> Any:
            return weights.place(
                f"{name}.{part}",
                lambda: weights.checkpoint.get(f"{name}.{part}").reshape(1, 1, -1, TILE),
                (None, None),
                dtype=ttnn.bfloat16,
                layout=ttnn.ROW_MAJOR_LAYOUT,
            )

        self.weight, self.bias = row("weight"), row("bias")

    def __call__(self, x_11RD: Any) -> Any:
        return ttnn.layer_norm(
            x_11RD,
            weight=self.weight,
            bias=self.bias,
            memory_config=ttnn.DRAM_MEMORY_CONFIG,
            **self.arguments,
        )
