"""Row-parallel products of a prefill, and where the scatter of their sum may run beside them.

On a ring one op makes a long product slice by slice, and scatters the sum of each slice while it
makes the next: a single slice would gain nothing. The scatter has cores of its own, in rows that
the product leaves idle or gives up. Next: collectives_beside.py runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from backends import ttnn
from models.plans.matmul import PrefillLinear, prefill_linear
from models.plans.target import Target
from models.precision import OpGroup, TensorGroup
from models.sharding import TILE

# Cores of a link and direction that add up what comes, where slices are long; one more sends
ADDING_CORES = {"wormhole_b0": 2, "blackhole": 4}
# Every slice begins a scatter anew (20 us on eight chips): what is made meanwhile must take longer
LEAST_WEIGHT = 1 << 22  # numbers on a chip, counted for each slice up to the fourth
# A row of cores given up makes 1024 rows a quarter slower, which a scatter must make up for: it
# takes 0.9 times a product of 1792 and 0.4 times one of 3584 numbers a sum, on an n300's one link
MOST_INNER, INNER_PER_SLICE = 4096, 1024
MOST_SLOWER = 1.25

Room = tuple[tuple[int, ...], Any]  # shape and format of a product in slices


def output_product(target: Target, rows: int) -> PrefillLinear:
    """Plan of the output projection of attention, for `rows` of all prompts together."""
    width = target.sharding.local_q_width
    return _row_parallel(target, rows, width, OpGroup.LI_O_PREFILL, TensorGroup.WO)


def down_product(target: Target, rows: int) -> PrefillLinear:
    """Plan of the last product of the feed-forward block."""
    width, slices = target.sharding.local_hidden, target.mlp_slices
    return _row_parallel(target, rows, width, OpGroup.LI_FF2, TensorGroup.FF2, **slices)


def rooms(targets: Iterable[Target], rows: int) -> set[Room]:
    """What other chips' parts of such products need room for, in layers like `targets`."""
    found: set[Room] = set()
    for target in set(targets):
        for plan in (output_product(target, rows), down_product(target, rows)):
            if plan.beside is not None:
                shape = (1, rows // plan.rows, plan.rows, target.sharding.local_dim)
                found.add((shape, plan.kwargs["dtype"]))
    return found


def _row_parallel(
    target: Target, rows: int, k: int, op: OpGroup, tensor: TensorGroup, **slices: int
) -> PrefillLinear:
    how = {
        "kernel": target.kernel(op),
        "fp32": target.wide_accumulator(op),
        "weight": target.sliced_weight(tensor),
        "dtype": target.activation_dtype(ttnn.bfloat8_b),
        "spec": target.spec,
        "room": target.product_room,
        **slices,
    }
    n = target.sharding.local_dim
    plan = prefill_linear(rows, k, n, **how)
    high = _rows_beside(target, plan, k, rows // plan.rows)
    if high is None:
        return plan
    beside = prefill_linear(rows, k, n, **how, high=high)
    if beside.rows != plan.rows:
        return plan  # taller blocks do not fit into L1
    return replace(plan, beside={**beside.kwargs, "reduce_scatter_core_grid_offset": (0, high)})


def _rows_beside(target: Target, plan: PrefillLinear, k: int, slices: int) -> int | None:
    """Rows of cores for a product beside the scatter of its sum; None where that does not pay."""
    sizes, spec = target.sharding, target.spec
    n, tiles = sizes.local_dim, plan.rows // TILE
    parts = not sizes.is_2d and sizes.num_chips > 2 and n % (TILE * sizes.num_chips) == 0
    long = slices > 1 and min(slices, 4) * k * n >= LEAST_WEIGHT
    if not (target.is_own and parts and long):
        return None
    columns, high = spec.compute_grid
    cores = 2 * max(1, spec.links[1]) * (ADDING_CORES[spec.arch] + 1)
    left = high - -(-cores // columns)
    if left < 1:
        return None
    slower = math.ceil(tiles / left) / math.ceil(tiles / high)
    makes_up = slower <= MOST_SLOWER and k <= min(MOST_INNER, INNER_PER_SLICE * slices)
    return left if slower == 1 or makes_up else None
