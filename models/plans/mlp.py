"""Placement of the gated feed-forward block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import ttnn
from models.plans.fused import on_ring, ring_linear
from models.plans.gathered import gate_product
from models.plans.matmul import (
    Kwargs,
    PrefillLinear,
    decode_linear,
    weight_memory,
)
from models.plans.scattered import down_product
from models.plans.stored import Stored, stored
from models.plans.target import Target
from models.precision import OpGroup, TensorGroup


@dataclass(frozen=True)
class MLPWeights:
    """Format and DRAM placement of the three matrices."""

    gate: Stored
    up: Stored
    down: Stored


@dataclass(frozen=True)
class MLPDecode:
    """Arguments of each decode op, in the order they run."""

    gate: Kwargs  # also up
    product: Kwargs
    down_input: Any
    down: Kwargs


@dataclass(frozen=True)
class MLPPrefill:
    """Arguments of each prefill op for one length."""

    gate: PrefillLinear
    product: Kwargs
    down: PrefillLinear


def mlp_weights(target: Target) -> MLPWeights:
    """How the three matrices are stored on each chip."""
    sizes, spec = target.sharding, target.spec
    ring = sizes.ring_cores
    wide = weight_memory(sizes.local_dim, sizes.local_hidden, spec, ring=ring)
    return MLPWeights(
        gate=stored(target, TensorGroup.FF1_FF3, wide, gathers=True),
        up=stored(target, TensorGroup.FF1_FF3, wide),
        down=stored(
            target,
            TensorGroup.FF2,
            weight_memory(sizes.local_hidden, sizes.local_dim, spec, ring=ring),
        ),
    )


def mlp_decode(target: Target) -> MLPDecode:
    """Arguments of a decode step: one tile row, a row a user."""
    sizes, spec = target.sharding, target.spec
    inner = target.activation_dtype(ttnn.bfloat8_b)
    if sizes.ring_cores:
        return _on_ring(target, inner)
    stream, product = target.stream, target.spread(sizes.local_hidden, most=64)
    return MLPDecode(
        gate=decode_linear(
            sizes.local_dim,
            sizes.local_hidden,
            kernel=target.kernel(OpGroup.LI_FF1_FF3),
            dtype=inner,
            spec=spec,
            weight=target.precision.tensor(TensorGroup.FF1_FF3),
            cores=stream.cores,
            out_cores=product.cores if target.is_own else stream.cores,
        ),
        product={"dtype": inner},
        down_input=product.memory,
        down=decode_linear(
            sizes.local_hidden,
            sizes.local_dim,
            kernel=target.kernel(OpGroup.LI_FF2),
            dtype=target.summed_dtype,
            spec=spec,
            weight=target.precision.tensor(TensorGroup.FF2),
            cores=product.cores,
            out_cores=target.row_parallel_cores if target.is_own else product.cores,
        ),
    )


def _on_ring(target: Target, inner: Any) -> MLPDecode:
    sizes = target.sharding
    dim, hidden = sizes.local_dim, sizes.local_hidden
    return MLPDecode(
        gate=ring_linear(
            dim, hidden, kernel=target.kernel(OpGroup.LI_FF1_FF3), dtype=inner, target=target
        ),
        product={"dtype": inner},
        down_input=on_ring(hidden, target.spec),
        down=ring_linear(
            hidden, dim, kernel=target.kernel(OpGroup.LI_FF2), dtype=inner, target=target
        ),
    )


def mlp_prefill(target: Target, length: int) -> MLPPrefill:
    """Arguments of a prefill of `length` rows, those of all its prompts together."""
    inner = target.activation_dtype(ttnn.bfloat8_b)
    return MLPPrefill(
        gate=gate_product(target, length),
        product={"dtype": inner, "memory_config": ttnn.DRAM_MEMORY_CONFIG},
        down=down_product(target, length),
    )
