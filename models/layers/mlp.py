"""Gated feed-forward block: down(silu(gate(x)) * up(x))."""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.plans.mlp import MLPDecode, MLPPrefill, MLPWeights
from models.plans.stored import Stored
from models.weights import WeightLoader


class MLP:
    """Gate and up are column-parallel, down is row-parallel."""

    def __init__(
        self,
        name: str,
        weights: WeightLoader,
        plan: MLPWeights,
        ccl: Any,
        *,
        gate: str | None = None,
    ) -> None:
        """`gate` names a number whose tanh scales what the block gives."""
        self.ccl = ccl
        dim, hidden = weights.sharding.dim, weights.sharding.hidden

        def column(part: str, stored: Stored) -> Any:
            arrange = weights.transposed(f"{name}.{part}.weight", dim, hidden)
            return weights.matrix(f"{name}.{part}", arrange, ("dim", "hidden"), stored)

        self.w_gate, self.w_up = column("w1", plan.gate), column("w3", plan.up)
        arrange = weights.transposed(f"{name}.w2.weight", hidden, dim, gate=gate)
        self.w_down = weights.matrix(f"{name}.w2", arrange, ("hidden", "dim"), plan.down)

    def decode(self, x_11BD: Any, plan: MLPDecode, residual: Any) -> Any:
        ccl = self.ccl.decode
        ahead = ccl.weights_ahead
        w_gate, w_up = self.w_gate.decode, self.w_up.decode
        gate_11BF, up_11BF = ccl.gated_products(x_11BD, w_gate, w_up, plan.gate)
        inner_11BF = silu_product(
            gate_11BF, up_11BF, memory_config=gate_11BF.memory_config(), **plan.product
        )
        inner_11BF = ccl.regather_columns(inner_11BF, "FF2")
        inner_11BF = ttnn.to_memory_config(inner_11BF, plan.down_input)
        out_11BD = ttnn.linear(inner_11BF, self.w_down.decode, **plan.down, **ahead)
        return ccl.sum_rows(out_11BD, residual, "FF2")

    def prefill(self, x_11SD: Any, plan: MLPPrefill, residual: Any) -> Any:
        w_gate, w_up = self.w_gate.prefill, self.w_up.prefill
        gate_11SF, up_11SF = self.ccl.column_products(x_11SD, plan.gate, w_gate, w_up)
        gate_11SF = self.ccl.scatter_columns(gate_11SF, "FF1")
        up_11SF = self.ccl.scatter_columns(up_11SF, "FF3")
        inner_11SF = silu_product(gate_11SF, up_11SF, **plan.product)
        self.ccl.free(gate_11SF)
        self.ccl.free(up_11SF)
        inner_11SF = self.ccl.regather_columns(inner_11SF, "FF2")
        out_11SD = self.ccl.row_product(inner_11SF, self.w_down.prefill, plan.down, residual, "FF2")
        self.ccl.free(inner_11SF)
        return out_11SD


def silu_product(gate: Any, up: Any, **arguments: Any) -> Any:
    """silu(gate) * up in one op."""
    return ttnn.mul(gate, up, input_tensor_a_activations=[ttnn.UnaryOpType.SILU], **arguments)
