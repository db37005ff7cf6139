"""Time of collectives: start, hops, and the bytes of the busiest link over its rate.

Constants come from measured tables of all-gather and reduce-scatter on lines and rings of 2, 4
and 8 chips; an all-reduce is a reduce-scatter and an all-gather. Those that write into persistent
buffers were timed on a Galaxy alone: elsewhere they are taken to start as fast, and to share the
links that there are.
"""

from __future__ import annotations

import math

from backends.op_record import OpRecord
from perf.cost import moves
from perf.cost.constants import Constants
from perf.cost.units import Situation, bytes_us, cost_now, cycles_us

KINDS = {
    "all_gather": ("gather",), "reduce_scatter": ("scatter",), "all_reduce": ("scatter", "gather"),
    "experimental.all_gather_async_reversed": ("gather",),
}  # fmt: skip
# the same into buffers that stay, with semaphores of their own: no chip waits before it sends
PERSISTENT = {
    "experimental.all_gather_async": ("gather",),
    "experimental.reduce_scatter_minimal_async": ("scatter",),
    "experimental.llama_reduce_scatter": ("scatter",),
    "experimental.llama_rs_create_heads": ("scatter",),
    "experimental.all_reduce_async": ("gather",),
}


# of these, chips hand on what they got; others send to all. From 4 chips to 8 that takes scatters
# no longer than gathers: 5.1 and 7.1 us in the tables
HANDED_ON = frozenset(
    {"experimental.all_gather_async", "experimental.reduce_scatter_minimal_async"}
)
TIMED_CHIPS = 4  # of the rings that most of galaxy_link_us comes from


def link_gbps(record: OpRecord, state: Situation) -> float:
    """Line rate between neighbours along an axis, one direction, over the links the op asks for."""
    have = max(1, state.spec.links[int(record.attributes.get("cluster_axis", 1))])
    return min(have, int(record.attributes.get("num_links", have))) * state.spec.link_gbps


def collective_us(record: OpRecord, state: Situation) -> float:
    """Time of a gather, a scatter, or both, each with its share of the link bytes."""
    at, kinds = record.attributes, KINDS[record.name]
    if record.name == "all_gather" and len(record.inputs) > 1:  # its result lies in what stays
        return scratch_us(record, state, kinds)
    chips = int(at["num_devices"])
    ring = at.get("topology") == "Ring" and chips > 2
    volume, rate = cost_now(record, state).link_bytes / len(kinds), link_gbps(record, state)
    if _gathered_instead(record, chips, ring, state):
        share = state.constants.fused_gather
        return share * pass_us("gather", chips, ring, volume, rate, state)
    rows = -(-math.prod(record.inputs[0].padded_shape[:-1]) // 32)
    return sum(pass_us(kind, chips, ring, volume, rate, state, rows) for kind in kinds)


def sliced_scatter_us(record: OpRecord, state: Situation, slices: int) -> float:
    """Time of one of the equal scatters that an op makes in turn, each with a start of its own."""
    at = record.attributes
    chips = int(at["num_devices"])
    ring = at.get("topology") == "Ring" and chips > 2
    volume = cost_now(record, state).link_bytes / slices
    return pass_us("scatter", chips, ring, volume, link_gbps(record, state), state)


def gather_parts_us(record: OpRecord, state: Situation) -> tuple[float, float]:
    """Start of the gather of an op's input, as of one that stands alone, and time on the links."""
    chips, rate = int(record.attributes["num_devices"]), link_gbps(record, state)
    start, whole = (
        pass_us("gather", chips, True, volume, rate, state)
        for volume in (0.0, cost_now(record, state).link_bytes)
    )
    return start, whole - start


def persistent_us(record: OpRecord, state: Situation) -> float:
    """Time of a collective of a fused step."""
    return scratch_us(record, state, PERSISTENT[record.name])


def summed_us(record: OpRecord, state: Situation) -> float:
    """A gather of whole parts; then each core adds up all chips' parts of its columns.

    Nobody has the sum before the last chip has sent its part. How long chips of a Galaxy wait for
    each other is in its timings; those of a line wait as in its other collectives.
    """
    chips = int(record.attributes["num_devices"])
    parts = chips * moves.shard_tiles(record.outputs[0])
    added = cycles_us(parts * state.constants.sum_cycles, state.spec)
    return (
        persistent_us(record, state) + added + (0.0 if state.is_grid else waiting_us(chips, state))
    )


def scattered_heads_us(record: OpRecord, state: Situation) -> float:
    """A scatter whose rows go on to the cores of their users."""
    return persistent_us(record, state) + state.constants.l1_op_us


def joined_heads_us(record: OpRecord, state: Situation) -> float:
    """A gather of rows, which the cores that wait for them lay side by side and tilize."""
    return scratch_us(record, state, ("gather",)) + state.constants.galaxy_join_us


def fused_norm_us(record: OpRecord, state: Situation) -> float:
    """A norm of shards, and the gather of its statistics."""
    norm = moves.norm_us(record, state, start=state.constants.galaxy_norm_us)
    return norm + scratch_us(record, state, ("gather",))


def scratch_us(record: OpRecord, state: Situation, kinds: tuple[str, ...]) -> float:
    """Time of passes over buffers that stay; chips beyond those of a timed ring add hops."""
    c, at = state.constants, record.attributes
    chips = int(at["num_devices"])
    ring = at.get("topology") == "Ring" and chips > 2
    volume, rate = cost_now(record, state).link_bytes / len(kinds), link_gbps(record, state)
    shares = [link_share(c, state.spec.arch, kind == "gather", chips, ring) for kind in kinds]
    start = c.galaxy_link_us
    if record.name in HANDED_ON:
        start += c.gather_hop_us * max(0, chips - TIMED_CHIPS)
    return sum(start + bytes_us(volume, share * rate) for share in shares)


def _gathered_instead(record: OpRecord, chips: int, ring: bool, state: Situation) -> bool:
    """Whether the software gathers heads inside the output projection instead.

    It does so on rings of 8 whose chips keep a multiple of 8 tiles of the model width.
    """
    fits = ring and chips == 8 and (record.outputs[0].shape[-1] // 32) % 8 == 0
    decode = record.outputs[0].padded_shape[-2] == 32
    attention = record.name == "reduce_scatter" and record.scope.endswith(".attention")
    return state.software.gathers_heads and fits and decode and attention


def pass_us(
    kind: str, chips: int, ring: bool, volume: float, rate: float, state: Situation,
    rows: int = 1,
) -> float:  # fmt: skip
    """A gather or scatter with `volume` bytes on its busiest link, over links of `rate` GB/s."""
    c, spec, software = state.constants, state.spec, state.software
    gather = kind == "gather"
    if state.is_grid and not software.fabric:
        own = c.grid_gather_gbps if gather else c.grid_scatter_gbps
        return c.grid_us + bytes_us(volume, min(own, rate))
    share = link_share(c, spec.arch, gather, chips, ring)
    start, hop = (c.gather_us, c.gather_hop_us) if gather else (c.scatter_us, c.scatter_hop_us)
    faster = c.link_latency_bh if spec.arch == "blackhole" else 1.0
    waiting = waiting_us(chips, state, rows)
    return (start + hop * chips) * faster + waiting + bytes_us(volume, share * rate)


def waiting_us(chips: int, state: Situation, rows: int = 1) -> float:
    """Chips of a model do not arrive together, and wait for each other at every row of tiles."""
    c = state.constants
    if state.isolated:
        return 0.0
    per_chip = c.link_skew_us + (rows - 1) * c.link_row_us
    waiting = (c.link_skew_fabric_us if state.software.fabric else per_chip) * (chips - 2)
    return waiting + (c.link_early_us if state.software.early_links else 0.0)


def link_share(c: Constants, arch: str, gather: bool, chips: int, ring: bool) -> float:
    """Share of the line rate that large transfers reach."""
    if arch == "blackhole":
        return c.gather_rate_bh if gather else c.scatter_rate_bh
    if chips == 2:
        return c.gather_rate_pair if gather else c.scatter_rate_pair
    if ring:
        return c.gather_rate_ring if gather else c.scatter_rate_ring
    return c.gather_rate if gather else c.scatter_rate
