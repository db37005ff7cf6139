"""Time of elementwise ops, norms, resharding, look-ups and draws."""

from __future__ import annotations

import math

from backends.device_specs import DeviceSpec
from backends.op_record import TILE_BYTES, OpRecord, TensorSpec
from backends.work import shared_rows
from models.sharding import LEAST_SEARCHED, MOST_SEARCHED
from perf.cost.units import Situation, bytes_us, cost_now, cycles_us, reach, tiles

# ops that go through a tensor by rows of tiles: a row stays on one core
ROW_OPS = frozenset(
    {
        "layer_norm", "rms_norm", "rms_norm_pre_all_gather", "rms_norm_post_all_gather",
        "experimental.nlp_create_qkv_heads", "experimental.nlp_concat_heads",
        "experimental.rotary_embedding_llama",
    }
)  # fmt: skip


def topk_us(record: OpRecord, state: Situation) -> float:
    """Columns are searched part by part on many cores, and one merges what they found.

    That is of widths that are powers of two; others are gone through by one core. Older software's
    rows were timed whole.
    """
    c, width = state.constants, record.inputs[0].shape[-1]
    if state.software.plans != "own" or record.name == "argmax":
        return cycles_us(c.topk_cycles * width, state.spec)
    if width & (width - 1) or not LEAST_SEARCHED <= width <= MOST_SEARCHED:
        alone = c.topk_alone_cycles_bh if state.spec.arch == "blackhole" else c.topk_alone_cycles
        return cycles_us(alone * width, state.spec)
    splits = (1 << n for n in range(1, 7))  # cores, up to 64; each has two tiles at least
    share = width // 32
    passes = min(7 * share // n + 2 * n for n in splits if share // n >= 2)
    return cycles_us(c.topk_pass_cycles * passes, state.spec)


def seed_us(record: OpRecord, state: Situation) -> float:
    """Every core sets one register: all there is to it is the launch, which is priced apart."""
    return 0.0


def sampling_us(record: OpRecord, state: Situation) -> float:
    """A draw from candidates."""
    return state.constants.sampling_us * (0.3 + 0.7 * record.inputs[0].shape[-1] / 256)


def norm_us(record: OpRecord, state: Situation, *, start: float | None = None) -> float:
    """Cores that hold parts of a row exchange statistics, as a rule within the op."""
    c = state.constants
    if record.attributes.get("use_2d_core_grid"):
        return shared_norm_us(record, state)
    return _spread_us(record, state, c.norm_cycles, in_l1=c.norm_us if start is None else start)


def shared_norm_us(record: OpRecord, state: Situation) -> float:
    """Half a norm whose rows are shared by columns of cores; those sum up statistics together."""
    c, spec = state.constants, state.spec
    x, out = record.inputs[0], record.outputs[0]
    columns = -(-x.padded_shape[-1] // 32)
    per_core = math.prod(shared_rows(tiles(x.padded_shape) // columns, columns, spec.compute_grid))
    start = c.norm_us if out.padded_shape[-1] < x.padded_shape[-1] else c.dram_op_us
    traffic = bytes_us(cost_now(record, state).dram_bytes, c.dram_interleaved * spec.dram_gbps)
    return start + max(cycles_us(per_core * c.norm_cycles, spec), traffic)


def move_us(record: OpRecord, state: Situation) -> float:
    """Tiles go elsewhere, uncomputed."""
    return _spread_us(record, state, state.constants.move_cycles)


def eltwise_us(record: OpRecord, state: Situation) -> float:
    """Each tile is computed on by itself; what one operand waits for in DRAM, all do."""
    c = state.constants
    waits = any(t.buffer == "DRAM" for t in record.inputs)
    return _spread_us(record, state, c.eltwise_cycles, in_l1=c.dram_op_us if waits else None)


def picked_rows_us(record: OpRecord, state: Situation) -> float:
    """Rows of a table that is not gone through."""
    return _spread_us(record, state, state.constants.move_cycles, operands=record.outputs)


def fill_us(record: OpRecord, state: Situation) -> float:
    """Whole prompts go where the cache has room."""
    return _spread_us(record, state, state.constants.move_cycles, operands=record.inputs[1:2])


def update_us(record: OpRecord, state: Situation) -> float:
    """A core for each user (and cache) reads, changes and writes back the tiles of its heads.

    The op on both caches was timed on a Galaxy; that on one is known from whole steps alone.
    """
    c, spec, cost = state.constants, state.spec, cost_now(record, state)
    users, _, _ = reach(record, state)
    per_core = cost.dram_bytes / 2 / TILE_BYTES[record.inputs[0].dtype]
    per_core /= users * len(record.outputs)
    traffic = bytes_us(cost.dram_bytes, c.dram_interleaved * spec.dram_gbps)
    start = c.l1_op_us if len(record.outputs) == 1 else c.update_us
    return start + max(cycles_us(per_core * c.update_cycles, spec), traffic)


def _spread_us(
    record: OpRecord,
    state: Situation,
    cycles: float,
    *,
    in_l1: float | None = None,
    operands: tuple[TensorSpec, ...] = (),
) -> float:
    """Tiles of the largest operand over the cores that hold or share them, or the DRAM traffic."""
    c, spec = state.constants, state.spec
    operands = operands or (*record.inputs, *record.outputs)
    sharded = _sharded(operands)
    if sharded is not None:
        start = c.l1_op_us if in_l1 is None else in_l1
        per_core = shard_tiles(sharded)
    else:
        start = c.dram_op_us if any(t.buffer == "DRAM" for t in operands) else c.l1_op_us
        per_core = _tiles_per_core(record, max(operands, key=_own_tiles), spec)
    traffic = bytes_us(cost_now(record, state).dram_bytes, c.dram_interleaved * spec.dram_gbps)
    return start + max(cycles_us(per_core * cycles, spec), traffic)


def _own_tiles(tensor: TensorSpec) -> int:
    return tiles(tensor.padded_shape)


def shard_tiles(tensor: TensorSpec) -> int:
    """Tiles of one shard; rows are counted by what they hold."""
    shape = tensor.shard or (32, 32)
    return -(-math.prod(shape) // 1024) if tensor.layout == "ROW_MAJOR" else tiles(shape)


def _sharded(operands: tuple[TensorSpec, ...]) -> TensorSpec | None:
    """The operand with the largest shard in L1: its cores do the work."""
    found = [t for t in operands if t.shard and t.buffer == "L1"]
    return max(found, key=shard_tiles, default=None)


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
