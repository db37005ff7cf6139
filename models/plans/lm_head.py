"""Placement of the output projection: cut into pieces whose outputs fit into L1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from backends import ttnn
from models.plans.fused import on_ring, ring_linear
from models.plans.matmul import MOST_CORES, Kwargs, decode_linear, dtype_of, weight_memory
from models.plans.target import Target
from models.sharding import TILE

# 668 output columns per core on 48 cores: what fits into L1 beside the weight blocks
MOST_COLUMNS = 668 * 48


@dataclass(frozen=True)
class LMHeadPlan:
    """Pieces of the vocabulary as (first column, columns), each one DRAM-sharded linear."""

    pieces: tuple[tuple[int, int], ...]
    memory: tuple[Any, ...]
    linear: tuple[Kwargs, ...]
    weight_dtype: Any
    input: Any = None  # memory that the pieces read, where it is not the norm's


def lm_head_plan(target: Target) -> LMHeadPlan:
    """Logits come out in bfloat16: a block format would tie neighbouring candidates."""
    sizes, spec = target.sharding, target.spec
    tiles = sizes.local_vocab // TILE
    count = -(-sizes.local_vocab // MOST_COLUMNS)
    bounds = [tiles * i // count * TILE for i in range(count + 1)]
    pieces = tuple((bounds[i], bounds[i + 1] - bounds[i]) for i in range(count))
    return LMHeadPlan(
        pieces=pieces,
        memory=tuple(
            weight_memory(sizes.local_dim, n, spec, ring=sizes.ring_cores) for _, n in pieces
        ),
        linear=tuple(_linear(target, n) for _, n in pieces),
        weight_dtype=dtype_of(target.head_precision),
        input=on_ring(sizes.local_dim, spec) if sizes.ring_cores else None,
    )


def _linear(target: Target, columns: int) -> Kwargs:
    sizes, spec = target.sharding, target.spec
    if sizes.ring_cores:  # beside readers that are done with the layers: from DRAM itself
        return ring_linear(
            sizes.local_dim,
            columns,
            kernel=target.head_kernel,
            dtype=ttnn.bfloat16,
            target=replace(target, prefetch=False),
        )
    return decode_linear(
        sizes.local_dim,
        columns,
        kernel=target.head_kernel,
        dtype=ttnn.bfloat16,
        spec=spec,
        weight=target.head_precision,
        cores=target.stream.cores,
        out_cores=MOST_CORES if target.is_own else target.stream.cores,
    )
