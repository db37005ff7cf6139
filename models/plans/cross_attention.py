"""Placement of attention to images: queries of the text, keys and values of the tower's states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import ttnn
from models.plans.attention import AttentionDecode, attention_decode, attention_prefill
from models.plans.matmul import (
    Kwargs,
    PrefillLinear,
    decode_linear,
    most_cores,
    prefill_linear,
    weight_memory,
)
from models.plans.target import Target
from models.precision import OpGroup, TensorGroup

CHUNK = 128  # rows of queries, and of keys, in one block of scores: divides every prompt's bucket


@dataclass(frozen=True)
class CrossWeights:
    """Format and DRAM placement of the projections and the cache."""

    dtype: Any
    q_memory: Any
    kv_memory: Any
    o_dtype: Any
    o_memory: Any
    cache_dtype: Any


@dataclass(frozen=True)
class CrossPrefill:
    """Arguments of each prefill op for one length of text and number of tiles."""

    q: PrefillLinear
    kv: PrefillLinear
    scores: Kwargs
    query_dtype: Any
    o: PrefillLinear


def cross_weights(target: Target) -> CrossWeights:
    """How the projections and the cache of image keys are stored on each chip."""
    sizes, spec = target.sharding, target.spec
    return CrossWeights(
        dtype=target.weight_dtype(TensorGroup.WQKV),
        q_memory=weight_memory(sizes.local_dim, sizes.local_q_width, spec),
        kv_memory=weight_memory(sizes.local_dim, _kv_width(target), spec),
        o_dtype=target.weight_dtype(TensorGroup.WO),
        o_memory=weight_memory(sizes.local_q_width, sizes.local_dim, spec),
        cache_dtype=target.weight_dtype(TensorGroup.KV_CACHE),
    )


def cross_decode(target: Target) -> tuple[Kwargs, AttentionDecode]:
    """The query projection's arguments; all others are those of attention to the text."""
    sizes = target.sharding
    q = decode_linear(
        sizes.local_dim,
        sizes.local_q_width,
        kernel=target.kernel(OpGroup.LI_QKV_DECODE),
        dtype=ttnn.bfloat16,
        spec=target.spec,
        weight=target.precision.tensor(TensorGroup.WQKV),
        cores=target.stream.cores,
        out_cores=most_cores(sizes.local_q_width),
    )
    return q, attention_decode(target)


def cross_prefill(target: Target, length: int, rows: int, slice_rows: int) -> CrossPrefill:
    """Plan for `length` positions of text that look at `rows` rows of states."""
    sizes = target.sharding
    own = attention_prefill(target, 1, length, 0)

    def linear(count: int, columns: int, **more: Any) -> PrefillLinear:
        return prefill_linear(
            count,
            sizes.local_dim,
            columns,
            kernel=target.kernel(OpGroup.LI_QKV_PREFILL),
            fp32=target.wide_accumulator(OpGroup.LI_QKV_PREFILL),
            dtype=ttnn.bfloat16,
            spec=target.spec,
            **more,
        )

    scores = dict(own.scores) | {
        "memory_config": ttnn.DRAM_MEMORY_CONFIG,
        "program_config": ttnn.SDPAProgramConfig(
            compute_with_storage_grid_size=target.scores_grid,
            exp_approx_mode=False,
            q_chunk_size=CHUNK,
            k_chunk_size=CHUNK,
        ),
        "is_causal": False,
    }
    return CrossPrefill(
        q=linear(length, sizes.local_q_width),
        kv=linear(rows, _kv_width(target), most=slice_rows),
        scores=scores,
        query_dtype=target.activation_dtype(ttnn.bfloat8_b),
        o=own.o,
    )


def _kv_width(target: Target) -> int:
    """Keys and values of one chip."""
    return 2 * target.sharding.local_kv_heads * target.sharding.head_dim
