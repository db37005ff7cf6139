"""Column-parallel products of a prefill, and where the gather of their input may run beside them.

On a ring of eight chips one op gathers the normed stream and multiplies what is there: this chip's
share first, all others two at a time as they come. It wants a weight whose tiles are spread over
all DRAM banks, which decode does not stream: a copy for prefill alone (stored.py). The gather has
cores of its own, in rows that the product leaves idle. Next: collectives_beside.py runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from backends import ttnn
from models.plans.matmul import TILE_BYTES, PrefillLinear, dtype_of, prefill_linear
from models.plans.scattered import Room, down_product, output_product, rooms
from models.plans.target import Target
from models.precision import OpGroup, Precision, TensorGroup
from models.sharding import TILE, Sharding

RING = 8  # chips whose shares the op's kernels count
# Workers of each link and direction, as TT-NN chooses those of a gather alone; one more core sends
FEW_WORKERS, MANY_WORKERS, MANY_FROM = 2, 4, 256 * 1024  # bytes on a link


def can_gather(sizes: Sharding) -> bool:
    """Whether gathers may run beside products, given copies of the weights for it."""
    return not sizes.is_2d and sizes.num_chips == RING


def qkv_product(target: Target, rows: int) -> PrefillLinear:
    """Plan of the projections of attention, for `rows` of all prompts together."""
    width = target.sharding.local_qkv_width
    # rotary embedding takes bfloat16 only
    return _behind(
        target, rows, width, OpGroup.LI_QKV_PREFILL, TensorGroup.WQKV, dtype=ttnn.bfloat16
    )


def gate_product(target: Target, rows: int) -> PrefillLinear:
    """Plan of the first products of the feed-forward block; the second one finds all gathered."""
    width, dtype = target.sharding.local_hidden, target.activation_dtype(ttnn.bfloat8_b)
    op, tensor = OpGroup.LI_FF1_FF3, TensorGroup.FF1_FF3
    return _behind(target, rows, width, op, tensor, dtype=dtype, **target.mlp_slices)


def gather_rooms(targets: Iterable[Target], rows: int) -> set[Room]:
    """What the gathered stream needs room for, in layers like `targets`."""
    return {
        ((1, 1, rows, target.sharding.local_dim), target.activation_dtype(ttnn.bfloat8_b))
        for target in set(targets)
        if qkv_product(target, rows).behind or gate_product(target, rows).behind
    }


@dataclass(frozen=True)
class Beside:
    """What chips hand each other while products are made: bytes of a chip's rooms for it, and
    whether the sums of attention, and of the feed-forward block, are scattered so in all layers.
    """

    rooms: int = 0
    attention: bool = False
    mlp: bool = False


def beside(targets: Iterable[Target], rows: int) -> Beside:
    """The same of a prefill of `rows` on a ring."""
    targets = set(targets)
    found = rooms(targets, rows) | gather_rooms(targets, rows)
    tile_bytes = {dtype_of(precision): size for precision, size in TILE_BYTES.items()}
    return Beside(
        sum(math.prod(shape) * tile_bytes[dtype] // TILE**2 for shape, dtype in found),
        all(output_product(target, rows).beside for target in targets),
        all(down_product(target, rows).beside for target in targets),
    )


def _behind(
    target: Target, rows: int, n: int, op: OpGroup, tensor: TensorGroup, **how: Any
) -> PrefillLinear:
    k = target.sharding.local_dim
    how |= {
        "kernel": target.kernel(op),
        "fp32": target.wide_accumulator(op),
        "weight": target.sliced_weight(tensor),
        "spec": target.spec,
        "room": target.product_room,
    }
    plan = prefill_linear(rows, k, n, **how)
    if not target.gathers or plan.rows != rows:  # the op takes one block of rows
        return plan
    columns, high = target.spec.compute_grid
    links = max(1, target.spec.links[1])
    workers = _workers(target, rows * k, links)
    left = high - math.ceil(2 * links * (workers + 1) / columns)
    # blocks of K lie in one share
    beside = prefill_linear(rows, k, n, **how, high=left, parts=RING)
    if beside.rows != rows or _height(beside) > _height(plan):
        return plan  # a row of cores that the product lacks costs more than is hidden
    offset = {"all_gather_core_grid_offset": (0, left), "num_workers_per_link": workers}
    return replace(plan, behind={**beside.kwargs, **offset})


def _workers(target: Target, numbers: int, links: int) -> int:
    """Workers of a gather of so many numbers."""
    blocks = target.activation_dtype(ttnn.bfloat8_b) == ttnn.bfloat8_b
    whole = numbers * TILE_BYTES[Precision.BFP8 if blocks else Precision.BF16] / TILE**2
    return MANY_WORKERS if whole * (RING - 1) / RING / links / 2 > MANY_FROM else FEW_WORKERS


def _height(plan: PrefillLinear) -> int:
    """Rows of tiles of each core."""
    return plan.kwargs["program_config"].per_core_M
