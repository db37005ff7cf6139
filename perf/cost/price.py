"""Time of one recorded op on one product: `op_time(record, state)`.

Physics first: bytes over bandwidth, tile products over cores, link bytes over links, and never
below them; calibrated constants (constants.py) say how close kernels come. Ops are told apart by
name, placement and program config alone. Next: compute.py, links.py, moves.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.device_specs import FLOP_PER_CYCLE_LOFI, PASSES
from backends.op_record import OpRecord
from perf.cost import compute, links, moves
from perf.cost.units import COLLECTIVES, FOLDED, State, bytes_us, cycles_us, is_view


@dataclass(frozen=True)
class OpTime:
    """Time of one call, the physical limit below it, and what sets that limit."""

    us: float
    limit_us: float
    bound: str  # "dram", "compute", "links" or "latency"
    dram_bytes: float = 0.0


def op_time(record: OpRecord, state: State) -> OpTime:
    """Time of one op, launch gap left out; never below the physical limit."""
    limit = physical_limit(record, state)
    us = _time_us(record, state)
    if us <= limit.us and not is_prefetched(record, state):
        return OpTime(limit.us, limit.us, limit.bound, limit.dram_bytes)
    bound = limit.bound if limit.us > 0.3 * us else "latency"
    return OpTime(us, limit.us, bound, limit.dram_bytes)


def _time_us(record: OpRecord, state: State) -> float:
    name = record.name
    if is_view(record):
        return 0.0
    if name in COLLECTIVES:
        return links.collective_us(record, state)
    if name in ("linear", "matmul"):
        config = str(record.attributes.get("program_config", ""))
        if "DRAMSharded" in config:
            return compute.dram_sharded_matmul_us(record, state)
        if "MultiCast" in config:
            return compute.matmul_2d_us(record, state)
    if name.endswith("attention_decode"):
        return compute.sdpa_decode_us(record, state)
    if name.endswith("dot_product_attention"):
        return compute.sdpa_prefill_us(record, state)
    return moves.small_op_us(record, state)


def is_prefetched(record: OpRecord, state: State) -> bool:
    """Whether the weight was read while earlier ops ran: then only a step as a whole is bound."""
    config = str(record.attributes.get("program_config", ""))
    return state.folds and "DRAMSharded" in config


@dataclass(frozen=True)
class Limit:
    """What no kernel can beat on the product."""

    us: float
    bound: str
    dram_bytes: float


def physical_limit(record: OpRecord, state: State) -> Limit:
    """Peak DRAM bandwidth, peak arithmetic at the op's fidelity on all cores, line rate."""
    spec = state.spec
    dram, flops, link_us = 0.0, 0.0, 0.0
    if is_view(record) or (state.folds and record.name in FOLDED):
        return Limit(0.0, "latency", 0.0)
    if record.name in COLLECTIVES:
        link_us = links.line_rate_us(record, state)
    elif record.name in ("linear", "matmul"):
        flops, dram = compute.matmul_work(record)
    elif "dot_product_attention" in record.name:
        flops, dram = compute.attention_work(record, state)
    else:
        dram = moves.dram_bytes(record, state)
    fidelity = record.attributes.get("math_fidelity", "LoFi")
    rate = FLOP_PER_CYCLE_LOFI / PASSES[fidelity] * spec.num_cores
    parts = {
        "dram": bytes_us(dram, spec.dram_gbps),
        "compute": cycles_us(flops / rate, spec),
        "links": link_us,
    }
    bound = max(parts, key=lambda part: parts[part])
    return Limit(parts[bound], bound if parts[bound] else "latency", dram)
