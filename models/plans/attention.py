"""Placement of attention: projections, heads, rotary embedding, cache and scores."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import torch

from backends import ttnn
from models.plans.fused import joined_memory, num_workers, ring_linear, sharded, worker_cores
from models.plans.gathered import qkv_product
from models.plans.matmul import (
    MOST_CORES,
    Kwargs,
    PrefillLinear,
    Spread,
    by_rows,
    decode_linear,
    height_sharded,
    weight_memory,
)
from models.plans.scattered import output_product
from models.plans.stored import Stored, stored
from models.plans.target import SHORT, Target
from models.precision import OpGroup, TensorGroup
from models.sharding import MAX_USERS, TILE

SHARED_FROM = 2048  # positions whose attention costs more than dealing it out: 130 us a layer
# Cores for a long context of one head: 16 read it at 56 GB/s (T3K), a chip's DRAM gives 198.
SHARERS = 32
MOVE_BLOCKS = 8  # of activations that must be saved (0.65 us each) to pay for a move of them (5 us)


@dataclass(frozen=True)
class AttentionWeights:
    """Format and DRAM placement of the projections and the cache."""

    qkv: Stored
    o: Stored
    cache_dtype: Any


@dataclass(frozen=True)
class AttentionDecode:
    """Arguments of each decode op, in the order they run."""

    qkv: Kwargs
    heads_input: Any
    heads: Kwargs
    scores: Kwargs
    concat_input: Any
    o_input: Any
    o: Kwargs
    fused: bool = False  # heads are scattered to their users, and gathered, by fused collectives


@dataclass(frozen=True)
class AttentionPrefill:
    """Arguments of each prefill op for one length."""

    qkv: PrefillLinear
    heads: Any  # memory of queries, keys and values, and of what they give
    scores: Kwargs
    query_dtype: Any
    o: PrefillLinear
    ways: int = 1  # chips of a row that share the queries of one prompt


def float32_exact(value: float) -> float:
    """Nearest float32: the chunked attention's binding refuses any other float."""
    return struct.unpack("f", struct.pack("f", value))[0]


def attention_weights(target: Target) -> AttentionWeights:
    """How the projections and the cache of a layer are stored on each chip."""
    sizes, spec = target.sharding, target.spec
    ring = sizes.ring_cores
    return AttentionWeights(
        qkv=stored(
            target,
            TensorGroup.WQKV,
            weight_memory(sizes.local_dim, sizes.local_qkv_width, spec, ring=ring),
            gathers=True,
        ),
        o=stored(
            target,
            TensorGroup.WO,
            weight_memory(sizes.local_q_width, sizes.local_dim, spec, ring=ring),
        ),
        cache_dtype=target.weight_dtype(TensorGroup.KV_CACHE),
    )


def _score_arguments(target: Target, chunk: int, group: OpGroup, **program: int) -> dict[str, Any]:
    return {
        "scale": float32_exact(target.sharding.config.attention_scale),
        "program_config": ttnn.SDPAProgramConfig(
            compute_with_storage_grid_size=target.scores_grid,
            exp_approx_mode=False,
            q_chunk_size=chunk,
            k_chunk_size=chunk,
            **program,
        ),
        "compute_kernel_config": target.kernel(group),
        "memory_config": ttnn.DRAM_MEMORY_CONFIG,
    }


def heads_apart(target: Target) -> bool:
    """Whether queries and keys of a decode step lie on cores of their own.

    Then one op turns both and one writes keys and values. It takes a projection whose every head
    is a core's share, straight from the matmul.
    """
    sizes, spec = target.sharding, target.spec
    return (
        target.is_own
        and not sizes.is_2d
        and not sizes.config.qkv_bias
        and _projected_heads(target) <= MOST_CORES
        and sizes.head_dim % TILE == 0
        and 2 * target.users <= spec.num_cores
    )


@dataclass(frozen=True)
class RopePlan:
    """How a decode step turns queries and keys, and where its tables lie."""

    together: bool  # in one op: queries and keys lie on cores of their own
    head_rows: int | None  # rows that a user's heads fill, where they are no tiles
    columns: int  # of chips that have users of their own
    cores: int
    tables: Any
    turn: Any
    heads: int  # of queries on a chip
    most_cores: int  # of a chip that turn rows of prompts; 0: heads stay with their rows

    def folds(self, users: int, rows: int) -> bool:
        """Whether a prompt's heads are turned one below the other, each row of tiles on a core.

        A core that turns all heads of a row reads its row of the tables once, but a short prompt
        has fewer rows than there are cores.
        """
        high = -(-rows // TILE)
        if users > 1 or rows % TILE or not self.most_cores:
            return False
        # in rows of tiles: two are of the tables
        folded = 3 * math.ceil(self.heads * high / self.most_cores)
        return folded < (self.heads + 2) * math.ceil(high / self.most_cores)

    def looked_up(self, positions_B: torch.Tensor) -> torch.Tensor:
        """Positions as a decode step looks them up, [1, n]; columns of a mesh have equal shares.

        Once for each user, or for every head of its queries, and again of its keys.
        """
        rows = self.head_rows
        if rows is None:
            return positions_B.reshape(1, -1)
        own = positions_B.reshape(self.columns, 1, -1, 1)
        return own.expand(-1, 2, -1, rows).reshape(1, -1)

    def users_of(self, looked_up_1N: torch.Tensor) -> torch.Tensor:
        """The positions of users that `looked_up` was given."""
        rows = self.head_rows
        if rows is None:
            return looked_up_1N.reshape(-1)
        return looked_up_1N.reshape(self.columns, 2, -1, rows)[:, 0, :, 0].reshape(-1)


def rope_plan(target: Target) -> RopePlan:
    """How queries and keys of a decode step turn: together on a ring or where they lie apart."""
    sizes, spec = target.sharding, target.spec
    shared: Kwargs = {
        "heads": sizes.local_heads, "most_cores": spec.num_cores if target.is_own else 0
    }  # fmt: skip
    if sizes.ring_cores:
        cores, rows = worker_cores(2 * target.users, spec), sizes.local_heads
        return RopePlan(
            together=True,
            head_rows=rows,
            columns=sizes.cols,
            cores=2 * target.users,
            tables=sharded(cores, sizes.head_dim, rows=rows, by_height=True),
            turn=sharded(cores, TILE, by_height=True),
            **shared,
        )
    together = heads_apart(target)
    count = 2 * target.users if together else target.users
    return RopePlan(
        together=together,
        head_rows=None,
        columns=sizes.ways("users"),
        cores=count,
        tables=height_sharded(count, sizes.head_dim, spec.compute_grid),
        turn=height_sharded(count, TILE, spec.compute_grid),
        **shared,
    )


def _projected_heads(target: Target) -> int:
    return target.sharding.local_heads + 2 * target.sharding.local_kv_heads


def _o_input(target: Target) -> Spread:
    """Where the output projection reads: as heads are joined, unless moving them pays."""
    sizes, spec = target.sharding, target.spec
    moved = target.spread(sizes.local_q_width)
    tiles = sizes.local_q_width // TILE
    if not target.is_own or sizes.is_2d or sizes.local_heads > MOST_CORES or sizes.head_dim % TILE:
        return moved
    blocks = [tiles // min(tiles // cores, 8) for cores in (sizes.local_heads, moved.cores)]
    if blocks[0] - blocks[1] >= MOVE_BLOCKS:
        return moved
    joined = by_rows(sizes.local_q_width, sizes.local_heads, spec)
    return Spread(sizes.local_heads, (sizes.local_heads, 1), joined)


def _sharers(target: Target) -> dict[str, int]:
    """Most cores that share a user's context of one head; without a word the op takes 16."""
    return {"max_cores_per_head_batch": SHARERS} if target.is_own else {}


def attention_decode(target: Target) -> AttentionDecode:
    """Arguments of a decode step: one tile row, a row a user."""
    sizes, spec = target.sharding, target.spec
    if sizes.ring_cores:
        return _on_ring(target)
    head_rows = -(-sizes.local_heads // TILE)
    apart, stream, o_input = heads_apart(target), target.stream, _o_input(target)
    projected = _projected_heads(target)
    return AttentionDecode(
        # head creation takes bfloat16 only
        qkv=decode_linear(
            sizes.local_dim,
            sizes.local_qkv_width,
            kernel=target.kernel(OpGroup.LI_QKV_DECODE),
            dtype=ttnn.bfloat16,
            spec=spec,
            weight=target.precision.tensor(TensorGroup.WQKV),
            cores=stream.cores,
            out_cores=projected if apart else stream.cores,
        ),
        heads_input=(
            by_rows(sizes.local_qkv_width, projected, spec) if apart else ttnn.L1_MEMORY_CONFIG
        ),
        heads={
            "overlap_qk_coregrid": not apart,
            "memory_config": ttnn.L1_HEIGHT_SHARDED_MEMORY_CONFIG,
        },
        scores=_score_arguments(target, 0, OpGroup.SDPA_DECODE, **_sharers(target)),
        concat_input=height_sharded(target.users, sizes.head_dim, rows=head_rows),
        o_input=o_input.memory,
        o=decode_linear(
            sizes.local_q_width,
            sizes.local_dim,
            kernel=target.kernel(OpGroup.LI_O_DECODE),
            dtype=target.summed_dtype,
            spec=spec,
            weight=target.precision.tensor(TensorGroup.WO),
            cores=o_input.cores,
            out_cores=target.row_parallel_cores if target.is_own else o_input.cores,
        ),
    )


def _on_ring(target: Target) -> AttentionDecode:
    sizes, spec = target.sharding, target.spec
    # cores that attend for a user; the software of 2025 took 32 in all
    each = (num_workers(spec) if target.is_own else MAX_USERS) // target.users
    return AttentionDecode(
        qkv=ring_linear(
            sizes.local_dim,
            sizes.local_qkv_width,
            kernel=target.kernel(OpGroup.LI_QKV_DECODE),
            dtype=ttnn.bfloat16,
            target=target,
            in_rows=not sizes.config.qkv_bias,  # biases are added in tiles
        ),
        heads_input=None,
        heads={},
        scores={
            **_score_arguments(target, 0, OpGroup.SDPA_DECODE),
            "program_config": ttnn.SDPAProgramConfig(
                compute_with_storage_grid_size=(
                    (each, target.users) if spec.is_from_column else (target.users, each)
                ),
                sub_core_grids=worker_cores(target.users * each, spec),
                exp_approx_mode=False,
                q_chunk_size=0,
                k_chunk_size=0,
            ),
            "memory_config": sharded(
                worker_cores(target.users, spec), sizes.head_dim, by_height=True
            ),
        },
        concat_input=None,
        o_input=joined_memory(target),
        o=ring_linear(
            sizes.local_q_width,
            sizes.local_dim,
            kernel=target.kernel(OpGroup.LI_O_DECODE),
            dtype=target.activation_dtype(ttnn.bfloat8_b),
            target=target,
        ),
        fused=True,
    )


def heads_memory(rows: int, *, own: bool = True) -> Any:
    """Where heads of so many rows of whole prompts lie; older software kept all in DRAM."""
    return ttnn.L1_MEMORY_CONFIG if own and rows <= SHORT else ttnn.DRAM_MEMORY_CONFIG


def score_chunk(length: int, start: int, ways: int = 1) -> int:
    """Rows per attention block: as long as they divide what a chip takes, and the chunk's start."""
    longest, piece = 256 if length >= 2048 else 64, length if ways == 1 else length // (2 * ways)
    while piece % longest or start % longest:
        longest //= 2
    return longest


def query_ways(target: Target, users: int, length: int) -> int:
    """Chips of a row that share the queries of a prompt, which all of them hold."""
    sizes = target.sharding
    pieces = 2 * sizes.cols * TILE  # each takes an early and a late one
    shared = (
        target.is_own
        and sizes.is_2d
        and users == 1
        and length >= SHARED_FROM
        and length % pieces == 0
        and not sizes.config.sliding_window
        and sizes.local_q_width % (sizes.cols * TILE) == 0
    )
    return sizes.cols if shared else 1


def _query_dtype(target: Target, ways: int, *, is_short: bool) -> Any:
    """Few queries are read sooner than made smaller; those that are shared are as the keys are."""
    if is_short:
        return ttnn.bfloat16
    if ways > 1:
        return target.weight_dtype(TensorGroup.KV_CACHE)
    return target.activation_dtype(ttnn.bfloat8_b)


def attention_prefill(target: Target, users: int, length: int, start: int) -> AttentionPrefill:
    """Plan for `users` prompts of `length` positions from `start`, projected in one product."""
    ways = query_ways(target, users, length)
    heads = heads_memory(users * length, own=target.is_own and not start)
    # of one prompt: those prefilled together get the digits that each would get alone
    is_short = heads_memory(length, own=target.is_own and not start) == ttnn.L1_MEMORY_CONFIG
    scores = _score_arguments(target, score_chunk(length, start, ways), OpGroup.SDPA_PREFILL)
    return AttentionPrefill(
        qkv=qkv_product(target, users * length),
        heads=heads,
        scores=scores | {"memory_config": heads},
        query_dtype=_query_dtype(target, ways, is_short=is_short),
        o=output_product(target, users * length),
        ways=ways,
    )
