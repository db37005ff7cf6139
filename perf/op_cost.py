"""Time of one recorded op on one product: `op_time(record, state)`.

Physics first: bytes over bandwidth, tile products over cores, link bytes over links, and never
below them; calibrated constants (constants.py) say how close kernels come. Ops are told apart by
name, placement and program config alone. Next: cost_compute.py, cost_links.py, predict.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from backends.device_specs import FLOP_PER_CYCLE_LOFI, PASSES, DeviceSpec
from backends.op_record import OpRecord, TensorSpec
from perf.constants import Constants
from perf.software import Software

TILE_BYTES = {
    "bfloat16": 2048, "bfloat8_b": 1088, "bfloat4_b": 576, "float32": 4096,
    "uint32": 4096, "int32": 4096, "uint16": 2048, "uint8": 1024,
}  # fmt: skip

# ops that go through a tensor by rows of tiles: a row stays on one core
ROW_OPS = frozenset(
    {
        "rms_norm", "rms_norm_pre_all_gather", "rms_norm_post_all_gather",
        "experimental.nlp_create_qkv_heads", "experimental.nlp_concat_heads",
        "experimental.rotary_embedding_llama",
    }
)  # fmt: skip
# what the Galaxy's own software folds into the ops beside it
FOLDED = frozenset(
    {
        "to_memory_config", "matmul", "reshape", "add", "rms_norm_pre_all_gather",
        "experimental.nlp_create_qkv_heads_decode", "experimental.nlp_concat_heads_decode",
    }
)  # fmt: skip
# neighbours of one name that it runs as one op
PAIRED = frozenset(
    {
        "reduce_scatter", "experimental.rotary_embedding_llama", "experimental.paged_update_cache",
    }
)  # fmt: skip
MOVES = frozenset(
    {
        "to_memory_config", "sharded_to_interleaved", "interleaved_to_sharded", "reshape", "concat",
        "slice", "transpose", "permute", "pad", "tilize", "untilize", "to_layout", "embedding",
        "experimental.nlp_create_qkv_heads", "experimental.nlp_concat_heads",
        "experimental.nlp_create_qkv_heads_decode", "experimental.nlp_concat_heads_decode",
        "experimental.paged_fill_cache", "experimental.paged_update_cache", "fill_cache",
    }
)  # fmt: skip
COLLECTIVES = frozenset({"all_gather", "reduce_scatter", "all_reduce"})


@dataclass(frozen=True)
class State:
    """What a record does not say: where it runs, and how far the users have come."""

    spec: DeviceSpec
    constants: Constants
    software: Software
    context: int = 0  # positions a decode step attends to
    active_users: int = 1  # of the decode slots of one data-parallel group
    is_grid: bool = False  # the group is a 2D mesh
    isolated: bool = False  # an op timed by itself, in a loop
    prefill: bool = False

    @property
    def folds(self) -> bool:
        """Whether decode ops are folded into their neighbours."""
        return self.software.fused and not self.prefill


@dataclass(frozen=True)
class OpTime:
    """Time of one call, the physical limit below it, and what sets that limit."""

    us: float
    limit_us: float
    bound: str  # "dram", "compute", "links" or "latency"
    dram_bytes: float = 0.0


def tiles(shape: tuple[int, ...]) -> int:
    """32 x 32 tiles of a padded shape."""
    rows = shape[-2] if len(shape) > 1 else 1
    lead = math.prod(shape[:-2]) if len(shape) > 2 else 1
    return lead * -(-rows // 32) * -(-shape[-1] // 32)


def stored_bytes(tensor: TensorSpec) -> int:
    """Bytes of one chip's part."""
    if tensor.layout == "TILE":
        return tiles(tensor.padded_shape) * TILE_BYTES[tensor.dtype]
    return math.prod(tensor.shape) * TILE_BYTES[tensor.dtype] // 1024


def cycles_us(cycles: float, spec: DeviceSpec) -> float:
    """Microseconds of so many cycles."""
    return cycles / (spec.clock_ghz * 1000)


def bytes_us(num_bytes: float, gbps: float) -> float:
    """Microseconds of so many bytes."""
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


def op_time(record: OpRecord, state: State) -> OpTime:
    """Time of one op, launch gap left out; never below the physical limit."""
    limit = physical_limit(record, state)
    us = _time_us(record, state)
    if us <= limit.us and not is_prefetched(record, state):
        return OpTime(limit.us, limit.us, limit.bound, limit.dram_bytes)
    bound = limit.bound if limit.us > 0.3 * us else "latency"
    return OpTime(us, limit.us, bound, limit.dram_bytes)


def _time_us(record: OpRecord, state: State) -> float:
    from perf import cost_compute, cost_links

    name = record.name
    if is_view(record):
        return 0.0
    if name in COLLECTIVES:
        return cost_links.collective_us(record, state)
    if name in ("linear", "matmul"):
        config = str(record.attributes.get("program_config", ""))
        if "DRAMSharded" in config:
            return cost_compute.dram_sharded_matmul_us(record, state)
        if "MultiCast" in config:
            return cost_compute.matmul_2d_us(record, state)
    if name.endswith("attention_decode"):
        return cost_compute.sdpa_decode_us(record, state)
    if name.endswith("dot_product_attention"):
        return cost_compute.sdpa_prefill_us(record, state)
    return small_op_us(record, state)


def is_prefetched(record: OpRecord, state: State) -> bool:
    """Whether the weight was read while earlier ops ran: then only a step as a whole is bound."""
    config = str(record.attributes.get("program_config", ""))
    return state.folds and "DRAMSharded" in config


def is_view(record: OpRecord) -> bool:
    """A reshape that only renames dimensions, or a move to where it is, launches nothing."""
    if not record.inputs or not record.outputs:
        return False
    before, after = record.inputs[0], record.outputs[0]
    if record.name == "to_memory_config":
        return before == after
    if record.name not in ("reshape", "unsqueeze_to_4D"):
        return False
    if before.layout != "TILE":
        return True
    same_tiles = tiles(before.padded_shape) == tiles(after.padded_shape)
    return same_tiles and before.padded_shape[-1] == after.padded_shape[-1]


def small_op_us(record: OpRecord, state: State) -> float:
    """Elementwise ops, norms, resharding, look-ups and draws."""
    c, spec = state.constants, state.spec
    name = record.name
    if state.folds and name in FOLDED:
        return 0.0
    if name in ("topk", "argmax"):
        return cycles_us(c.topk_cycles * record.inputs[0].shape[-1], spec)
    if name == "sampling":
        return c.sampling_us * (0.3 + 0.7 * record.inputs[0].shape[-1] / 256)
    # a table that rows are picked from, or a cache, is not gone through
    operands = (*record.inputs, *record.outputs)
    if name == "embedding":
        operands = record.outputs
    elif "cache" in name:
        operands = record.inputs[1:2]
    sharded = _sharded(operands)
    norm = "norm" in name
    if sharded is not None:
        start = c.norm_us if norm else c.l1_op_us
        per_core = tiles(sharded.shard or (32, 32))
    else:
        start = c.dram_op_us if any(t.buffer == "DRAM" for t in operands) else c.l1_op_us
        per_core = _tiles_per_core(record, max(operands, key=_own_tiles), spec)
    cycles = c.norm_cycles if norm else c.move_cycles if name in MOVES else c.eltwise_cycles
    traffic = bytes_us(_dram_bytes(record, state), c.dram_interleaved * spec.dram_gbps)
    return start + max(cycles_us(per_core * cycles, spec), traffic)


def _own_tiles(tensor: TensorSpec) -> int:
    return tiles(tensor.padded_shape)


def _sharded(operands: tuple[TensorSpec, ...]) -> TensorSpec | None:
    """The operand with the largest shard in L1: its cores do the work."""
    found = [t for t in operands if t.shard and t.buffer == "L1"]
    return max(found, key=lambda t: tiles(t.shard or (0, 0)), default=None)


def _tiles_per_core(record: OpRecord, tensor: TensorSpec, spec: DeviceSpec) -> int:
    """Tiles the busiest core handles when interleaved work is spread over the grid."""
    total = tiles(tensor.padded_shape)
    if record.name not in ROW_OPS:
        return -(-total // spec.num_cores)
    shape = tensor.padded_shape
    # heads of a position stay on its core, except in norms
    heads = shape[1] if len(shape) > 3 and "norm" not in record.name else 1
    rows = max(1, -(-shape[-2] // 32) * math.prod(shape[:-2]) // heads)
    per_row = total // rows
    if "rotary" in record.name:
        per_row += 2 * -(-shape[-1] // 32)  # cosines and sines of the row
    return -(-rows // spec.num_cores) * per_row


def _dram_bytes(record: OpRecord, state: State) -> float:
    """DRAM traffic of an op that is no matmul and no attention."""
    if record.name == "embedding":
        return 2 * stored_bytes(record.outputs[0])
    if "cache" in record.name:  # caches are written where the new positions go
        return 2 * stored_bytes(record.inputs[1])
    return sum(stored_bytes(t) for t in (*record.inputs, *record.outputs) if t.buffer == "DRAM")


@dataclass(frozen=True)
class Limit:
    """What no kernel can beat on the product."""

    us: float
    bound: str
    dram_bytes: float


def physical_limit(record: OpRecord, state: State) -> Limit:
    """Peak DRAM bandwidth, peak arithmetic at the op's fidelity on all cores, line rate."""
    from perf import cost_compute, cost_links

    spec = state.spec
    dram, flops, link_us = 0.0, 0.0, 0.0
    if is_view(record) or (state.folds and record.name in FOLDED):
        return Limit(0.0, "latency", 0.0)
    if record.name in COLLECTIVES:
        link_us = cost_links.line_rate_us(record, state)
    elif record.name in ("linear", "matmul"):
        flops, dram = cost_compute.matmul_work(record)
    elif "dot_product_attention" in record.name:
        flops, dram = cost_compute.attention_work(record, state)
    else:
        dram = _dram_bytes(record, state)
    fidelity = record.attributes.get("math_fidelity", "LoFi")
    rate = FLOP_PER_CYCLE_LOFI / PASSES[fidelity] * spec.num_cores
    parts = {
        "dram": bytes_us(dram, spec.dram_gbps),
        "compute": cycles_us(flops / rate, spec),
        "links": link_us,
    }
    bound = max(parts, key=lambda part: parts[part])
    return Limit(parts[bound], bound if parts[bound] else "latency", dram)
