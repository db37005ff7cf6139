"""Root-mean-square norm of the residual stream, in front of every block."""

from __future__ import annotations

from typing import Any

from backends import ttnn
from models.plans.norm import NormPlan
from models.plans.target import Phase
from models.weights import WeightLoader


class RMSNorm:
    """Takes the residual stream as chips hold it, gives what column-parallel products take."""

    def __init__(
        self, name: str, weights: WeightLoader, plans: dict[Phase, NormPlan], ccl: Any
    ) -> None:
        self.plans, self.ccl = plans, ccl
        self.epsilon = weights.sharding.norm_eps
        arrange = weights.norm(f"{name}.weight")
        kinds = {plan.distributed for plan in plans.values()}
        self.weight = {
            distributed: weights.place(
                f"{name}.{'shard' if distributed else 'whole'}",
                arrange,
                ("residual" if distributed else None, None),
                dtype=ttnn.bfloat16,
                layout=ttnn.ROW_MAJOR_LAYOUT,
            )
            for distributed in kinds
        }

    def __call__(self, x_11BD: Any, phase: Phase) -> Any:
        plan = self.plans[phase]
        weight = self.weight[plan.distributed]
        if plan.distributed:
            return self._distributed(x_11BD, weight, plan)
        x_11BD = self.ccl.gather_residual(x_11BD, plan.input_memory)
        return ttnn.rms_norm(
            x_11BD,
            epsilon=self.epsilon,
            weight=weight,
            memory_config=plan.input_memory,
            **plan.arguments,
        )

    def decode(self, x_11BD: Any) -> tuple[Any, Any]:
        """The stream of a decode step normed, and the stream with all that was added to it."""
        plan = self.plans[Phase.DECODE]
        if plan.fused is None:
            return self(x_11BD, Phase.DECODE), x_11BD
        weight = self.weight[plan.distributed]
        return self.ccl.decode.norm(x_11BD, weight, self.epsilon, plan.fused)

    def _distributed(self, x_11BD: Any, weight: Any, plan: NormPlan) -> Any:
        """Exchange sums of squares instead of activations."""
        if plan.input_memory.is_sharded():
            x_11BD = ttnn.to_memory_config(x_11BD, plan.input_memory)
        arguments = plan.halves(x_11BD.shape[2])
        stats = ttnn.rms_norm_pre_all_gather(x_11BD, dtype=ttnn.bfloat16, **arguments)
        stats = self.ccl.gather_stats(stats, plan.stats_memory)
        return ttnn.rms_norm_post_all_gather(
            x_11BD, stats, epsilon=self.epsilon, weight=weight, **arguments, **plan.output
        )
