"""Time of elementwise ops, norms, resharding, look-ups and draws."""

from __future__ import annotations

import math

from backends.device_specs import DeviceSpec
from backends.op_record import OpRecord, TensorSpec
from perf.cost.units import FOLDED, State, bytes_us, cycles_us, stored_bytes, tiles

# ops that go through a tensor by rows of tiles: a row stays on one core
ROW_OPS = frozenset(
    {
        "rms_norm", "rms_norm_pre_all_gather", "rms_norm_post_all_gather",
        "experimental.nlp_create_qkv_heads", "experimental.nlp_concat_heads",
        "experimental.rotary_embedding_llama",
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
    traffic = bytes_us(dram_bytes(record, state), c.dram_interleaved * spec.dram_gbps)
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


def dram_bytes(record: OpRecord, state: State) -> float:
    """DRAM traffic of an op that is no matmul and no attention."""
    if record.name == "embedding":
        return 2 * stored_bytes(record.outputs[0])
    if "cache" in record.name:  # caches are written where the new positions go
        return 2 * stored_bytes(record.inputs[1])
    return sum(stored_bytes(t) for t in (*record.inputs, *record.outputs) if t.buffer == "DRAM")
