"""Time of one recorded op on one product: `op_time(record, state)`.

Bytes, FLOPs and link bytes are what the op stated (OpRecord.cost), never computed here again.
Physics first: bytes over bandwidth, tile products over cores, link bytes over links, and never
below them; calibrated constants (constants.py) say how close kernels come. Ops are told apart by
name, placement and program config alone. Next: compute.py, links.py, moves.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from backends.device_specs import FLOP_PER_CYCLE_LOFI, PASSES
from backends.op_record import OpRecord
from perf.cost import compute, links, moves
from perf.cost.units import BESIDE, Situation, bytes_us, cost_now, cycles_us, is_view


@dataclass(frozen=True)
class OpTime:
    """Time of one call, the physical limit below it, and what sets that limit."""

    us: float
    limit_us: float
    bound: str  # "dram", "compute", "links" or "latency"
    dram_bytes: float = 0.0


def op_time(record: OpRecord, state: Situation) -> OpTime:
    """Time of one op, launch gap left out; never below the physical limit."""
    limit = physical_limit(record, state)
    us = kernel_us(record, state)
    if us <= limit.us:
        return OpTime(limit.us, limit.us, limit.bound, limit.dram_bytes)
    bound = limit.bound if limit.us > 0.3 * us else "latency"
    return OpTime(us, limit.us, bound, limit.dram_bytes)


# how the time of each op follows from its work; one that is not here is refused
PRICES: Mapping[str, Callable[[OpRecord, Situation], float]] = MappingProxyType(
    {
        **dict.fromkeys(("linear", "matmul"), compute.matmul_us),
        **dict.fromkeys(links.KINDS, links.collective_us),
        **dict.fromkeys(links.PERSISTENT, links.persistent_us),
        "experimental.llama_rs_create_heads": links.scattered_heads_us,
        "experimental.all_gather_concat": links.joined_heads_us,
        "experimental.all_reduce_async": links.summed_us,
        "fused_rms_minimal": links.fused_norm_us,
        **dict.fromkeys(BESIDE, compute.prefetch_us),
        "transformer.scaled_dot_product_attention_decode": compute.sdpa_decode_us,
        "transformer.paged_scaled_dot_product_attention_decode": compute.sdpa_decode_us,
        "transformer.scaled_dot_product_attention": compute.sdpa_prefill_us,
        "transformer.chunked_scaled_dot_product_attention": compute.sdpa_prefill_us,
        "transformer.ring_distributed_scaled_dot_product_attention": compute.sdpa_prefill_us,
        "experimental.llama_rs_matmul": compute.scattered_products_us,
        "experimental.matmul_reduce_scatter_async": compute.scattered_slices_us,
        "experimental.all_gather_matmul_async": compute.gathered_product_us,
        **dict.fromkeys(
            ("layer_norm", "rms_norm", "rms_norm_pre_all_gather", "rms_norm_post_all_gather"),
            moves.norm_us,
        ),
        **dict.fromkeys(
            (
                "add", "mul", "multiply", "silu", "typecast", "plus_one", "mesh_partition",
                "unsqueeze_to_4D", "experimental.rotary_embedding_llama",
                "experimental.rotary_embedding_llama_fused_qk",
            ),
            moves.eltwise_us,
        ),
        **dict.fromkeys(
            (
                "to_memory_config", "sharded_to_interleaved", "interleaved_to_sharded", "reshape",
                "concat", "slice", "transpose", "permute", "pad", "tilize", "untilize", "to_layout",
                "experimental.nlp_create_qkv_heads", "experimental.nlp_create_qkv_heads_decode",
                "experimental.nlp_concat_heads", "experimental.nlp_concat_heads_decode",
                "experimental.view",
            ),
            moves.move_us,
        ),
        **dict.fromkeys(
            ("experimental.paged_update_cache", "experimental.paged_fused_update_cache"),
            moves.update_us,
        ),
        **dict.fromkeys(("experimental.paged_fill_cache", "fill_cache"), moves.fill_us),
        "embedding": moves.picked_rows_us,
        **dict.fromkeys(("topk", "argmax"), moves.topk_us),
        "sampling": moves.sampling_us,
        "manual_seed": moves.seed_us,
    }
)  # fmt: skip


def kernel_us(record: OpRecord, state: Situation) -> float:
    """By its price alone, whatever the product can do."""
    price = PRICES.get(record.name)
    if price is None:
        raise ValueError(
            f"ttnn.{record.name} has no price: say in PRICES (perf/cost/price.py) how its time "
            "follows from its cost"
        )
    return 0.0 if is_view(record) else price(record, state)


@dataclass(frozen=True)
class Limit:
    """What no kernel can beat on the product."""

    us: float
    bound: str
    dram_bytes: float


def physical_limit(record: OpRecord, state: Situation) -> Limit:
    """Peak DRAM bandwidth, peak arithmetic at the op's fidelity on all cores, line rate."""
    spec, cost = state.spec, cost_now(record, state)
    fidelity = record.attributes.get("math_fidelity", "LoFi")
    rate = FLOP_PER_CYCLE_LOFI / PASSES[fidelity] * spec.num_cores
    parts = {
        "dram": bytes_us(cost.dram_bytes, spec.dram_gbps),
        "compute": cycles_us(cost.flops / rate, spec),
        "links": cost.link_bytes and bytes_us(cost.link_bytes, links.link_gbps(record, state)),
    }
    bound = max(parts, key=lambda part: parts[part])
    return Limit(parts[bound], bound if parts[bound] else "latency", cost.dram_bytes)
