"""Placement of a fused decode step on a 2D mesh: products on a ring of cores, sums in place.

Beside each DRAM bank one core reads weights ahead of time for the two next to it; those form the
ring that multiplies. Collectives write into buffers that stay. What a model must have for it is
said in `ring_for`; without it, the plain plans hold. Next: models/collectives_fused.py runs this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from loguru import logger

from backends import ttnn
from backends.device_specs import RECEIVERS, DeviceSpec
from models.config import ModelConfig
from models.plans.matmul import Kwargs
from models.plans.target import Target
from models.sharding import HEADS_TILE, MAX_USERS, TILE, Sharding

USERS = 8  # of one column of chips: a tile of users on four of them
# columns and rows of the cores from which scatters send, whatever they are given
SENDERS = frozenset({(5, 3), (6, 3), (3, 3), (2, 8), (3, 8)})


@dataclass(frozen=True)
class FusedGrid:
    """Where one chip's tensors of a fused step lie; all in L1, width-sharded unless said."""

    workers: Any  # cores that compute
    residual: Any
    hidden: Any  # a column's share of the inner activations
    hidden_whole: Any  # all columns', on the ring
    heads: Any  # cores that queries, keys and values are dealt to, a user each
    joined: Any  # heads of all users, in rows
    joins_at_once: bool  # whether one op gathers heads and lays them side by side
    packets: Any  # of scatters, beside the ring that may multiply meanwhile
    stats: Any  # in which norms exchange statistics


def ring_for(sizes: Sharding, spec: DeviceSpec) -> tuple[int | None, str]:
    """Cores of the ring, or None and why there is none: for meshes that could have one."""
    if not spec.dram_readers or (sizes.rows, sizes.cols) != spec.mesh_shape:
        return None, ""
    ring = RECEIVERS * len(spec.dram_readers)
    heads, inner = sizes.local_heads * sizes.head_dim, sizes.hidden_on_ring(ring)
    reasons = {
        # zero heads fill up the rest of a tile, where that is not most of it
        f"{heads} values of a user's heads on a chip, not {HEADS_TILE // 2} to {HEADS_TILE}": (
            not HEADS_TILE // 2 <= heads <= HEADS_TILE or HEADS_TILE % sizes.head_dim != 0
        ),
        f"{sizes.local_kv_heads} key/value heads on a chip, not 1": sizes.local_kv_heads != 1,
        f"a width of {sizes.local_dim} on a chip that 4 cores cannot share": (
            residual_cores(sizes.local_dim) < 4
        ),
        f"{inner} tiles of inner activations on a core, which part no packet of 4 evenly": (
            inner == 3
        ),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        return None, ", ".join(found)
    return ring, ""


def shard(
    config: ModelConfig,
    shape: tuple[int, int],
    spec: DeviceSpec,
    pad_mlp_cores: int | None = None,
    *,
    fused: bool = True,
    least_users: int = MAX_USERS,
) -> Sharding:
    """A model's sizes on a mesh, with a ring where its decode step can be fused.

    `least_users`: that a decode step has to have room for; fewer than columns, all have them.
    """
    few = shape[0] > 1 and least_users < shape[1]
    plain = Sharding(config, *shape, pad_mlp_cores, shared_users=few)
    if not fused:
        return plain
    ring, reason = ring_for(plain, spec)
    if reason:
        _say_once(f"{config.name} decodes on {spec.name} without fused ops: it has {reason}")
    return plain if ring is None else Sharding(config, *shape, pad_mlp_cores, ring)


def opened(spec: DeviceSpec, sizes: Sharding) -> DeviceSpec:
    """The product as it is opened for a model: a ring takes the grid of dispatch from a column.

    Products on a ring that read weights from DRAM know which bank a core is beside by its row in
    that grid, and so does the op that joins heads know its cores.
    """
    return spec.from_column() if sizes.ring_cores else spec


@cache
def _say_once(message: str) -> None:
    logger.info(message)


def residual_cores(width: int) -> int:
    """Cores in two columns that share a tile row evenly."""
    tiles = width // TILE
    return max((n for n in range(2, 19, 2) if tiles % n == 0), default=1)


def rectangle_of(first: tuple[int, int], last: tuple[int, int]) -> Any:
    """The cores between two corners (column, row), both included."""
    return ttnn.CoreRange(ttnn.CoreCoord(*first), ttnn.CoreCoord(*last))


def ring_cores(spec: DeviceSpec) -> Any:
    """The cores of the ring, in the order of the DRAM banks they multiply the weights of."""
    return ttnn.CoreRangeSet(
        [rectangle_of((x + 1, y), (x + RECEIVERS, y)) for x, y in spec.dram_readers]
    )


def joined_cores(spec: DeviceSpec) -> Any:
    """The cores of the ring one by one, those right of all readers first and neighbours near.

    A product takes its input from the ring in any order of its cores; the op that joins heads
    wants these first.
    """
    last = max(x for x, _ in spec.dram_readers)
    right, left = ([core for core in spec.dram_readers if (core[0] == last) is is_right]
                   for is_right in (True, False))  # fmt: skip
    down = sorted(right, key=lambda core: core[1])
    back = sorted(left, key=lambda core: -core[1])
    beside = [(x + step, y) for x, y in (*down, *back) for step in range(1, RECEIVERS + 1)]
    return ttnn.CoreRangeSet([rectangle_of(core, core) for core in beside])


def single_cores(spec: DeviceSpec) -> tuple[Any, Any]:
    """The cores that read weights, and all others, core by core."""
    columns, rows = spec.compute_grid
    every = [(x, y) for y in range(rows) for x in range(columns)]
    readers = [core for core in every if core in spec.dram_readers]
    others = [core for core in every if core not in spec.dram_readers]
    one, two = ([rectangle_of(core, core) for core in part] for part in (readers, others))
    return ttnn.CoreRangeSet(one), ttnn.CoreRangeSet(two)


def worker_cores(count: int, spec: DeviceSpec) -> Any:
    """`count` cores: row by row between the readers' columns and right of them, then in those."""
    rows, ranges = spec.compute_grid[1], []
    for left, right in _worker_columns(spec):
        wide = right - left + 1
        whole, rest = divmod(min(count, wide * rows), wide)
        if whole:
            ranges.append(rectangle_of((left, 0), (right, whole - 1)))
        if rest:
            ranges.append(rectangle_of((left, whole), (left + rest - 1, whole)))
        count -= wide * whole + rest
    columns = sorted({x for x, _ in spec.dram_readers})
    beside = [(x, y) for x in columns for y in range(rows) if (x, y) not in spec.dram_readers]
    assert count <= len(beside), f"{spec.name} has too few worker cores"
    ranges += [rectangle_of(core, core) for core in beside[:count]]
    return ttnn.CoreRangeSet(ranges)


def idle_cores(count: int, spec: DeviceSpec) -> Any:
    """`count` cores that neither read weights, multiply nor send, column by column.

    Those beside readers in their columns come last.
    """
    taken = {(x + step, y) for x, y in spec.dram_readers for step in range(RECEIVERS + 1)}
    taken |= SENDERS
    columns, rows = spec.compute_grid
    of_readers = {x for x, _ in spec.dram_readers}
    order = sorted(range(columns), key=lambda x: (x in of_readers, -x))
    idle = [(x, y) for x in order for y in range(rows) if (x, y) not in taken]
    assert count <= len(idle), f"{spec.name} has too few cores beside its ring"
    return ttnn.CoreRangeSet([rectangle_of(core, core) for core in idle[:count]])


def _worker_columns(spec: DeviceSpec) -> list[tuple[int, int]]:
    """First and last of neighbouring columns in which no reader lies."""
    taken = sorted({x for x, _ in spec.dram_readers})
    ends = [*taken[1:], spec.compute_grid[0]]
    return [(x + 1, end - 1) for x, end in zip(taken, ends, strict=True)]


def sharded(cores: Any, share: int, *, rows: int = TILE, by_height: bool = False) -> Any:
    """L1 memory with [rows, share] on each of the cores."""
    return ttnn.create_sharded_memory_config(
        (rows, share),
        cores,
        ttnn.ShardStrategy.HEIGHT if by_height else ttnn.ShardStrategy.WIDTH,
        ttnn.ShardOrientation.ROW_MAJOR,
        use_height_and_width_as_shard_shape=True,
    )


def on_ring(width: int, spec: DeviceSpec) -> Any:
    """Memory of a tile row on the ring, in whole tiles; the last cores may hold less or nothing."""
    cores = RECEIVERS * len(spec.dram_readers)
    return sharded(ring_cores(spec), math.ceil(width / (TILE * cores)) * TILE)


def joins_at_once(target: Target) -> bool:
    """Whether the op that gathers heads and joins them has the cores and heads that it is for."""
    sizes = target.sharding
    made_for = (sizes.local_heads, sizes.head_dim, sizes.cols, target.users)
    return target.spec.is_from_column and made_for == (USERS, 4 * TILE, 4, USERS)


def joined_memory(target: Target) -> Any:
    """Where heads of all users lie side by side for the output projection."""
    sizes, spec = target.sharding, target.spec
    memory = on_ring(sizes.local_q_width, spec)
    if not joins_at_once(target):
        return memory
    return sharded(joined_cores(spec), memory.shard_spec.shape[1])


def fused_grid(target: Target) -> FusedGrid:
    """Where the tensors of a fused step lie on each chip of a mesh with a ring."""
    sizes, spec = target.sharding, target.spec
    cores = residual_cores(sizes.local_dim)
    residual = ttnn.CoreRangeSet([rectangle_of((1, 0), (2, cores // 2 - 1))])
    share = sizes.local_hidden // sizes.cols
    left, right = _worker_columns(spec)[0]
    heads = ttnn.CoreRangeSet([rectangle_of((left, 0), (right, spec.compute_grid[1] - 1))])
    users = sizes.cols * USERS
    return FusedGrid(
        workers=worker_cores(num_workers(spec), spec),
        residual=sharded(residual, sizes.local_dim // cores),
        hidden=sharded(worker_cores(share // TILE, spec), TILE),
        hidden_whole=on_ring(sizes.local_hidden, spec),
        heads=sharded(heads, sizes.head_dim, by_height=True),
        joined=sharded(
            worker_cores(users, spec), sizes.head_dim, rows=sizes.local_heads, by_height=True
        ),
        joins_at_once=joins_at_once(target),
        packets=sharded(idle_cores(USERS, spec), 512),
        stats=sharded(ttnn.CoreRangeSet([rectangle_of((1, 0), (1, 0))]), TILE * sizes.cols),
    )


def num_workers(spec: DeviceSpec) -> int:
    """Cores that do not read weights."""
    columns, rows = spec.compute_grid
    return columns * rows - len(spec.dram_readers)


def ring_linear(
    k: int, n: int, *, kernel: Any, dtype: Any, target: Target, in_rows: bool = False
) -> Kwargs:
    """Arguments of a linear of one tile row on the ring; `in_rows` untilizes the result."""
    spec = target.spec
    cores = RECEIVERS * len(spec.dram_readers)
    tiles = math.ceil(n / (TILE * cores))
    longest = 4 if kernel.fp32_dest_acc_en else 8  # tiles that the accumulator holds
    return {
        "program_config": ttnn.MatmulMultiCoreReuseMultiCast1DProgramConfig(
            compute_with_storage_grid_size=spec.compute_grid,
            in0_block_w=max(
                w for w in range(1, max(1, k // TILE // cores) + 1) if k // TILE % w == 0
            ),
            out_subblock_h=1,
            out_subblock_w=max(w for w in range(1, longest + 1) if tiles % w == 0),
            per_core_M=1,
            per_core_N=tiles,
            fuse_batch=True,
            fused_activation=None,
            mcast_in0=False,
            gather_in0=True,
            num_global_cb_receivers=RECEIVERS if target.prefetch else 1,
            untilize_out=in_rows,
        ),
        "memory_config": on_ring(n, spec),
        "compute_kernel_config": kernel,
        "dtype": dtype,
    }


def fused_norm(target: Target, memory: Any) -> Kwargs:
    """Arguments of the op that adds to the residual stream and norms it, its result in `memory`."""
    cores = residual_cores(target.sharding.local_dim)
    tiles = target.sharding.local_dim // TILE // cores
    return {
        "program_config": ttnn.LayerNormShardedMultiCoreProgramConfig(
            compute_with_storage_grid_size=[2, cores // 2],
            subblock_w=max(w for w in range(1, 5) if tiles % w == 0),
            block_h=1,
            block_w=tiles,
            inplace=False,
        ),
        "compute_kernel_config": target.norm_kernel,
        "memory_config": memory,
        "dtype": ttnn.bfloat16,
    }
