"""Placement of the output projection: cut into pieces whose outputs fit into L1."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from backends import ttnn
from models.plans.fused import on_ring, ring_linear
from models.plans.matmul import (
    LONGEST_BLOCK,
    MOST_CORES,
    TILE_BYTES,
    Kwargs,
    columns_at_bank,
    decode_linear,
    dtype_of,
    stream_bytes,
    weight_memory,
)
from models.plans.target import Target
from models.precision import Precision
from models.sharding import TILE, round_up

MOST_COLUMNS = 668 * 48  # of a piece: 668 on each of 48 cores
KEPT_BYTES = 8192  # of a core's L1 that is taken by semaphores and what turns heads


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
    pieces = _pieces(target)
    return LMHeadPlan(
        pieces=pieces,
        memory=tuple(
            weight_memory(sizes.local_dim, n, spec, ring=sizes.ring_cores) for _, n in pieces
        ),
        linear=tuple(_linear(target, n) for _, n in pieces),
        weight_dtype=dtype_of(target.head_precision),
        input=on_ring(sizes.local_dim, spec) if sizes.ring_cores else None,
    )


def _pieces(target: Target) -> tuple[tuple[int, int], ...]:
    """The fewest even pieces of the vocabulary that leave L1 to a block of weights."""
    sizes = target.sharding
    tiles = sizes.local_vocab // TILE
    count = fewest = math.ceil(sizes.local_vocab / MOST_COLUMNS)
    if not sizes.ring_cores:
        counts = range(fewest, tiles // target.spec.dram_banks + 1)
        fits = (n for n in counts if _most_block(target, math.ceil(tiles / n) * TILE))
        count = next(fits, fewest)  # where no number of them does, TT-NN says so
    bounds = [tiles * i // count * TILE for i in range(count + 1)]
    return tuple((bounds[i], bounds[i + 1] - bounds[i]) for i in range(count))


def _most_block(target: Target, columns: int) -> int:
    """Tiles of K in the longest block that fits into L1 of a core at a bank; 0: none does.

    Beside it lie what the core makes (in groups of as many tiles as it sums up at once, and again
    in float32 if it sums up so) and its shares of the whole result, of the input, of the residual
    stream, and of cosines and sines.
    """
    sizes, spec = target.sharding, target.spec
    wide = target.head_kernel.fp32_dest_acc_en
    made = round_up(columns_at_bank(columns, spec), 4 if wide else 8) * (3 if wide else 1)
    share = math.ceil(columns / TILE / _out_cores(target))
    stream = sizes.local_dim // TILE // target.stream.cores
    tiles = made + share + 2 * stream + 2 * math.ceil(sizes.head_dim / TILE)
    tile = TILE_BYTES[Precision.BF16]
    left = target.left_bytes - KEPT_BYTES - tiles * tile
    each = stream_bytes(columns, spec, target.head_precision) + 2 * tile  # two of the input
    return max(0, min(LONGEST_BLOCK, left // each))


def _out_cores(target: Target) -> int:
    return MOST_CORES if target.is_own else target.stream.cores


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
        out_cores=_out_cores(target),
        most=_most_block(target, columns),
    )
