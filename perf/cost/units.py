"""What every price is made of: an op's stated work, cycles, and what a record does not say.

Next: compute.py, links.py and moves.py price kinds of ops with these; price.py chooses among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from backends.device_specs import DeviceSpec
from backends.op_record import Cost, OpRecord
from perf.cost.constants import Constants
from perf.cost.software import Software

# what runs on a part of the chip of its own, while all others of the step go on
BESIDE = frozenset({"dram_prefetcher"})
COLLECTIVES = frozenset(
    {
        "all_gather", "reduce_scatter", "all_reduce", "experimental.all_gather_async",
        "experimental.llama_reduce_scatter", "experimental.llama_rs_create_heads",
        "experimental.all_reduce_async", "experimental.reduce_scatter_minimal_async",
        "experimental.all_gather_concat", "experimental.all_gather_async_reversed",
        "experimental.matmul_reduce_scatter_async",
        "experimental.all_gather_matmul_async",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """What a record does not say: where it runs, and how far the users have come."""

    spec: DeviceSpec
    constants: Constants
    software: Software
    context: int = 0  # positions a decode step attends to
    active_users: int = 1  # of the decode slots of one data-parallel group
    is_grid: bool = False  # the group is a 2D mesh
    isolated: bool = False  # an op timed by itself, in a loop
    prefill: bool = False


def tiles(shape: tuple[int, ...]) -> int:
    """32 x 32 tiles of a padded shape."""
    rows = shape[-2] if len(shape) > 1 else 1
    lead = math.prod(shape[:-2]) if len(shape) > 2 else 1
    return lead * -(-rows // 32) * -(-shape[-1] // 32)


def cycles_us(cycles: float, spec: DeviceSpec) -> float:
    """Microseconds that a number of cycles takes."""
    return cycles / (spec.clock_ghz * 1000)


def bytes_us(num_bytes: float, gbps: float) -> float:
    """Microseconds that moving a number of bytes takes."""
    return num_bytes / (gbps * 1000)


def overlapped(*parts: float) -> float:
    """Time of parts that run side by side but share buffers: between their maximum and sum."""
    return math.sqrt(sum(part * part for part in parts))


def grid_cores(record: OpRecord, spec: DeviceSpec) -> tuple[int, int]:
    """Cores (columns, rows) of the program config, cut to what the chip has."""
    columns, rows = spec.compute_grid
    text = record.attributes.get("compute_with_storage_grid_size")
    if text:
        x, y = (int(part) for part in str(text).split("x"))
        return min(x, columns), min(y, rows)
    return min(8, columns), min(8, rows)


def is_view(record: OpRecord) -> bool:
    """An op that costs nothing launches nothing: a renamed shape, a move to where it is."""
    return stated(record) == Cost()


def stated(record: OpRecord) -> Cost:
    """What the op said it costs."""
    if record.cost is None:
        raise ValueError(
            f"{record.name} was recorded without its cost, as a dry run does: record op lists on "
            "the emulator"
        )
    return record.cost


def cost_now(record: OpRecord, state: Situation) -> Cost:
    """What the op costs with the users and positions there are, not the most there can be."""
    cost = stated(record)
    if not cost.cached_bytes:
        return cost
    users, context, slots = reach(record, state)
    share = users / slots
    if "context" in record.attributes:
        share *= context / int(record.attributes["context"])
    cached = round(share * cost.cached_bytes)
    return replace(
        cost,
        flops=round(share * cost.flops),
        dram_bytes=cost.dram_bytes - cost.cached_bytes + cached,
        cached_bytes=cached,
    )


def reach(record: OpRecord, state: Situation) -> tuple[int, int, int]:
    """Users with a context, positions each reads, and the slots that there are."""
    slots = int(record.attributes["users"])
    most = int(record.attributes.get("context", state.context))
    window = int(record.attributes.get("sliding_window_size") or most)
    if record.scope.startswith("cross_layers."):  # keys of an image do not grow with the answer
        return min(slots, state.active_users), most, slots
    return min(slots, state.active_users), min(state.context or most, most, window), slots
