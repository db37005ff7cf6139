"""Time of matrix products and attention on the cores their program configs name."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from backends.device_specs import RECEIVERS
from backends.op_record import OpRecord
from perf.cost import links, moves
from perf.cost.constants import Constants
from perf.cost.units import (
    Situation,
    bytes_us,
    cost_now,
    cycles_us,
    grid_cores,
    overlapped,
    reach,
)

FLOP_PER_TILE = 2 * 32**3  # of the product of two tiles
CHUNK = 32  # positions of a tile of keys
MERGED_FROM = 256  # positions a core takes before the next one joins in
MOST_CORES_PER_HEAD = 16  # decode attention splits a head's context over, where nobody says more


def matmul_us(record: OpRecord, state: Situation) -> float:
    """A product by the program its config names; without one, it runs like an elementwise op."""
    config = str(record.attributes.get("program_config", ""))
    if record.attributes.get("gather_in0"):
        return ring_matmul_us(record, state)
    if "DRAMSharded" in config:
        return dram_sharded_matmul_us(record, state)
    if "MultiCast" in config:
        return matmul_2d_us(record, state)
    return moves.eltwise_us(record, state)


def dram_sharded_matmul_us(record: OpRecord, state: Situation) -> float:
    """Each DRAM bank's slice of the weight is multiplied by the cores beside that bank.

    One core per bank streams and multiplies; blocks of the activations go round to all of them.
    """
    c, spec, software = state.constants, state.spec, state.software
    a, b = record.inputs[:2]
    rows, inner = -(-a.padded_shape[-2] // 32), -(-a.padded_shape[-1] // 32)
    columns = -(-b.padded_shape[-1] // 32)
    per_bank = -(-b.shard[1] // 32) if b.shard else -(-columns // spec.dram_banks)
    cost = cost_now(record, state)
    products = cost.flops / FLOP_PER_TILE
    fidelity = str(record.attributes.get("math_fidelity", "HiFi2"))
    per_product = cycles_per_product(c, fidelity, spec.arch)
    if state.is_grid and not software.sharded_on_grid:  # the weight lies spread over all banks
        share = math.ceil(products / spec.num_cores)
        stream = bytes_us(cost.dram_bytes, c.dram_interleaved * spec.dram_gbps)
        return c.matmul2d_us + max(stream, cycles_us(share * per_product, spec))
    readers = software.readers(spec.arch)
    efficiency = c.dram_sharded
    if spec.arch == "blackhole" and readers == 1:
        efficiency = c.dram_one_reader_bh
    stream = bytes_us(cost.dram_bytes, efficiency * spec.dram_gbps)
    blocks = inner / block_tiles(record, inner, columns, state)
    cycles = rows * inner * -(-per_bank // readers) * per_product + blocks * c.block_cycles
    return c.matmul_us + max(stream, cycles_us(cycles, spec))


def ring_matmul_us(record: OpRecord, state: Situation) -> float:
    """Blocks of activations go round a ring of cores, each with columns of the weight.

    What is not there ahead of time is read from DRAM: by the cores beside each bank where the
    weight is dealt to the banks, else by cores wherever they lie.
    """
    c, spec = state.constants, state.spec
    compute = _ring_us(record, state)
    share = c.dram_sharded if record.inputs[1].shard else c.dram_interleaved
    stream = bytes_us(cost_now(record, state).dram_bytes, share * spec.dram_gbps)
    return c.galaxy_matmul_us + max(compute, stream)


def scattered_products_us(record: OpRecord, state: Situation) -> float:
    """Two products on the ring; the first one's sum travels while the second is made."""
    compute, scatter = _ring_us(record, state), links.scratch_us(record, state, ("scatter",))
    return state.constants.galaxy_matmul_us + compute + max(compute, scatter)


def scattered_slices_us(record: OpRecord, state: Situation) -> float:
    """A product in slices, of which each is scattered while the next is made.

    Nobody published a time of it (tt-metal#55543 says that it loses a quarter where nothing
    overlaps). It is taken to gain no more than follows from its parts: a slice takes what it would
    alone on the cores that there are, its scatter what one of its size takes with its start, and
    what runs side by side draws on the same DRAM.
    """
    start = state.constants.matmul2d_us
    slices = math.prod(record.inputs[0].padded_shape[:-2])
    product = (matmul_2d_us(record, state) - start) / slices
    scatter = links.sliced_scatter_us(record, state, slices)
    return start + product + (slices - 1) * overlapped(product, scatter) + scatter


def gathered_product_us(record: OpRecord, state: Situation) -> float:
    """A product of parts that come from both sides of a ring, two at a time, as they come.

    Nobody published a time of it. It is taken to gain no more than follows from its parts: the
    gather starts as it does alone, its first parts are waited for, its last are multiplied when all
    others are, and what runs side by side draws on the same DRAM.
    """
    start, travelling = links.gather_parts_us(record, state)
    alone = replace(record, inputs=(record.outputs[0], record.inputs[1]))
    product = matmul_2d_us(alone, state) - state.constants.matmul2d_us
    rounds = int(record.attributes["num_devices"]) // 2
    beside = (rounds - 1) * overlapped(product, travelling)
    return start + state.constants.matmul2d_us + (travelling + beside + product) / rounds


def _ring_us(record: OpRecord, state: Situation) -> float:
    """The arithmetic of one product on a ring of cores, whose shards go round whole."""
    c, spec = state.constants, state.spec
    ring = RECEIVERS * len(spec.dram_readers)
    inner = ring * moves.shard_tiles(record.inputs[0])
    per_core = inner * int(record.attributes["per_core_N"])
    fidelity = str(record.attributes.get("math_fidelity", "HiFi2"))
    low = fidelity == "LoFi"
    per_product = c.galaxy_lofi_cycles if low else cycles_per_product(c, fidelity, spec.arch)
    return cycles_us(per_core * per_product, spec)


def prefetch_us(record: OpRecord, state: Situation) -> float:
    """Weights streamed by the core beside each bank, while other ops run."""
    c, spec = state.constants, state.spec
    return bytes_us(cost_now(record, state).dram_bytes, c.dram_sharded * spec.dram_gbps)


def block_tiles(record: OpRecord, inner: int, columns: int, state: Situation) -> int:
    """Tiles of K in one block of activations.

    The generic software of 2025 puts the activations of the feed-forward products on the largest
    grid that divides both K and N, and so cuts them finer than our plans do.
    """
    planned = int(record.attributes.get("in0_block_w", 1))
    if not state.software.shared_grids or not record.scope.endswith(".mlp"):
        return planned
    both = math.gcd(inner, columns)
    cores = max(n for n in range(1, 65) if both % n == 0 and _is_rectangle(n))
    return max(w for w in range(1, 9) if inner // cores % w == 0)


@cache
def _is_rectangle(cores: int) -> bool:
    """Whether an 8 x 8 grid has a rectangle of that number of cores."""
    return any(cores % rows == 0 and cores // rows <= 8 for rows in range(1, 9))


def cycles_per_product(c: Constants, fidelity: str, arch: str) -> float:
    """Cycles of one tile product in a decode matmul; HiFi3 lies between its neighbours."""
    table = {
        "LoFi": c.lofi_cycles_bh if arch == "blackhole" else c.lofi_cycles,
        "HiFi2": c.hifi2_cycles,
        "HiFi3": (c.hifi2_cycles + c.hifi4_cycles) / 2, "HiFi4": c.hifi4_cycles,
    }  # fmt: skip
    return table[fidelity]


def matmul_2d_us(record: OpRecord, state: Situation) -> float:
    """A grid of cores; its first row reads the weight, its first column the activations.

    A turned one shares columns of the product over its rows: there it is the other way round.
    A reader core draws a limited number of bytes a second, then hands blocks on: at 128 rows
    that, not arithmetic, sets the time.
    """
    c, spec = state.constants, state.spec
    a, b = record.inputs[:2]
    columns, rows = grid_cores(record, spec)
    at = record.attributes
    if at.get("transpose_mcast"):
        columns, rows = rows, columns
    inner = -(-a.padded_shape[-1] // 32)
    slices = math.prod(a.padded_shape[:-2]) if at.get("fuse_batch") is False else 1
    per_core = int(at.get("per_core_M", 1)) * int(at.get("per_core_N", 1)) * inner
    per_product = {
        "LoFi": c.lofi_cycles_2d, "HiFi2": c.hifi2_cycles_2d,
        "HiFi3": 1.5 * c.hifi2_cycles_2d, "HiFi4": 2 * c.hifi2_cycles_2d,
    }[str(at.get("math_fidelity", "HiFi2"))]  # fmt: skip
    if spec.arch == "blackhole":
        per_product *= c.cycles_2d_bh
    compute = cycles_us(per_core * per_product, spec)
    reader = reader_gbps(state)
    weights = bytes_us(b.stored_bytes, columns * reader)
    inputs = bytes_us(a.stored_bytes / slices, rows * reader)
    return c.matmul2d_us + slices * overlapped(compute, weights, inputs)


def reader_gbps(state: Situation) -> float:
    """What one core draws from DRAM; grows with the NoC's clock."""
    c, spec = state.constants, state.spec
    return (c.reader_gbps_bh if spec.arch == "blackhole" else c.reader_gbps) * spec.clock_ghz


def sdpa_decode_us(record: OpRecord, state: Situation) -> float:
    """Cores are dealt to the slots, then to heads; each reads its share of the positions.

    Idle slots keep their cores, so one user in many slots is slow.
    """
    c, spec = state.constants, state.spec
    _, context, slots = reach(record, state)
    heads = int(record.attributes["kv_heads"])
    columns, rows = grid_cores(record, spec)
    cores_per_slot = max(1, columns * rows // slots)
    if cores_per_slot >= heads:
        most = int(record.attributes.get("max_cores_per_head_batch", MOST_CORES_PER_HEAD))
        most = min(most, max(MOST_CORES_PER_HEAD, -(-context // MERGED_FROM)))  # who has work
        heads_per_core, cores_per_head = 1, min(most, cores_per_slot // heads)
    else:
        heads_per_core, cores_per_head = -(-heads // cores_per_slot), 1
    # queries that come in rows and results that stay on their users' cores are not moved twice
    in_rows = record.inputs[0].layout == "ROW_MAJOR"
    alone = c.galaxy_sdpa_cycles if in_rows else c.sdpa_alone_cycles
    # cores of one head share its positions, but draw them from the same place
    per_tile = alone / cores_per_head
    if not in_rows:
        per_tile += c.sdpa_shared_cycles * (1 - 1 / cores_per_head)
    work = heads_per_core * cycles_us(math.ceil(context / CHUNK) * per_tile, spec)
    stream = bytes_us(cost_now(record, state).dram_bytes, c.dram_interleaved * spec.dram_gbps)
    start = c.galaxy_sdpa_us if in_rows else c.sdpa_us
    active = min(cores_per_head, -(-context // MERGED_FROM))
    start += c.sdpa_merge_us * math.ceil(math.log2(max(1, active)))
    # 32 users of the Galaxy's table are slower than one by as much as reading all their keys takes
    both = work + stream if in_rows else max(work, stream)
    return start + (heads_per_core - 1) * c.sdpa_group_us + both


def sdpa_prefill_us(record: OpRecord, state: Situation) -> float:
    """Blocks of queries are dealt to the cores; each goes through the keys it may see."""
    c, spec = state.constants, state.spec
    query = record.inputs[0]
    columns, rows = grid_cores(record, spec)
    batch, heads, length, width = query.shape
    chunk = int(record.attributes.get("q_chunk_size") or 32)
    start = int(record.attributes.get("chunk_start_idx", 0))
    ways = int(record.attributes.get("ring_size", 1))  # chips that share the queries evenly
    blocks = -(-length // chunk)
    # pairs of tiles (queries x keys), the diagonal blocks whole
    seen = blocks * (blocks + 1) / 2 + blocks * start / chunk
    pairs = batch * heads * (chunk // 32) ** 2 * seen
    if record.attributes.get("is_causal") is False:
        k_chunk = int(record.attributes.get("k_chunk_size") or 32)
        keys = -(-record.inputs[1].shape[2] // k_chunk) * k_chunk
        pairs = batch * heads * blocks * (chunk // 32) * (keys // 32)
    window = record.attributes.get("sliding_window_size")
    if window:
        most = batch * heads * (length // 32) * (int(window) + chunk) / 32
        pairs = min(pairs, most)
    cores: float = min(columns * rows, batch * heads * blocks // ways)
    pairs /= ways
    if spec.arch == "blackhole" and ways == 1 and batch * heads <= columns * rows:
        # a head's blocks go to whole cores: where three share 16, one takes 6 (tt-metal#56694)
        cores = batch * heads * blocks / math.ceil(blocks / (columns * rows // (batch * heads)))
    per_pair = 2 * -(-width // 32) * c.sdpa_matmul_cycles + c.sdpa_softmax_cycles
    if state.software.plans == "galaxy 2025":
        per_pair *= c.galaxy_scores
    elif state.software.later_scores:  # timed with blocks of two to eight tiles
        per_pair *= c.later_scores + c.later_scores_step / min(chunk // 32, 8)
    stream = bytes_us(cost_now(record, state).dram_bytes, c.dram_interleaved * spec.dram_gbps)
    return c.sdpa_prefill_us + max(cycles_us(pairs / cores * per_pair, spec), stream)
