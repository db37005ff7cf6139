"""Op records of what was timed elsewhere, with the cost that the emulated op would state."""

from __future__ import annotations

from typing import Any

from backends.op_record import TILE_BYTES, Cost, OpRecord, TensorSpec, operand_bytes
from backends.work import attention_flops, kv_bytes, link_bytes, product_flops

FORMATS = {
    "bf16": "bfloat16", "bfp8": "bfloat8_b", "bfp4": "bfloat4_b", "f32": "float32", "i32": "int32"
}  # fmt: skip

Shape = tuple[int, ...]


def tensor(
    shape: Shape,
    dtype: str = "bf16",
    *,
    buffer: str = "DRAM",
    cores: int = 0,
    banks: int = 0,
) -> TensorSpec:
    """A tiled tensor: interleaved, width-sharded over `cores` of L1 or over `banks` of DRAM."""
    pad = tuple(-(-n // 32) * 32 for n in shape[-2:])
    padded = (*shape[:-2], *pad)
    pieces = cores or banks
    shard = (pad[0], -(-pad[1] // (32 * pieces)) * 32) if pieces else None
    layout = "WIDTH_SHARDED" if pieces else "INTERLEAVED"
    return TensorSpec(shape, padded, FORMATS[dtype], "TILE", buffer, layout, shard)


def op(
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    attributes: dict[str, Any] | None = None,
    **work: int,
) -> OpRecord:
    """An op that was timed elsewhere, with the cost that the emulated op would state."""
    operands = (*inputs, *outputs)
    default = {
        "l1_bytes": operand_bytes(operands, "L1"),
        "dram_bytes": operand_bytes(operands, "DRAM"),
    }
    work = default | work
    return OpRecord(name, inputs, outputs, attributes or {}, cost=Cost(**work))


def product(
    rows: int, inner: int, columns: int, dtype: str, fidelity: str, left: str = "bf16",
    **attributes: Any,
) -> OpRecord:  # fmt: skip
    """A 2D multicast matmul on operands in DRAM, on the 8-wide grid the plans use."""
    height = min(8, max(1, rows // 32))
    config = {
        "program_config": "MatmulMultiCoreReuseMultiCastProgramConfig",
        "compute_with_storage_grid_size": f"8x{height}",
        "per_core_M": -(-rows // 32 // height),
        "per_core_N": -(-columns // 32 // 8),
        "math_fidelity": fidelity,
    }
    operands = tensor((1, 1, rows, inner), left), tensor((1, 1, inner, columns), dtype)
    out = tensor((1, 1, rows, columns))
    flops = product_flops(rows, inner, columns)
    return op("linear", operands, (out,), config | attributes, flops=flops)


def bank_product(
    inner: int, columns: int, dtype: str, fidelity: str, *, block: int, banks: int = 12
) -> OpRecord:
    """A DRAM-sharded matmul of one tile row."""
    weight = tensor((1, 1, inner, columns), dtype, banks=banks)
    return op(
        "linear",
        (tensor((1, 1, 32, inner), buffer="L1", cores=32), weight),
        (tensor((1, 1, 32, columns), buffer="L1", cores=32),),
        {
            "program_config": "MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig",
            "in0_block_w": block,
            "math_fidelity": fidelity,
        },
        flops=product_flops(32, inner, columns),
        dram_bytes=weight.sharded_bytes,
    )


def collective(
    kind: str,
    whole: Shape,
    dtype: str,
    *,
    chips: int,
    axis: int = 1,
    ring: bool = False,
    links: int = 1,
) -> OpRecord:
    """A gather of `whole`, or a scatter or sum of it, over `chips` along a mesh axis."""
    part = tensor((*whole[:-1], whole[-1] // chips), dtype)
    full = tensor(whole, dtype)
    before, after = {
        "all_gather": (part, full), "reduce_scatter": (full, part), "all_reduce": (full, full),
    }[kind]  # fmt: skip
    at = {
        "cluster_axis": axis, "num_devices": chips, "num_links": links,
        "topology": "Ring" if ring else "Linear",
    }  # fmt: skip
    passes = 2 if kind == "all_reduce" else 1
    sent = passes * link_bytes(full.stored_bytes, chips, ring=ring)
    return op(kind, (before,), (after,), at, link_bytes=sent)


def simple(name: str, before: TensorSpec, after: TensorSpec, **attributes: Any) -> OpRecord:
    """An op with one operand."""
    return op(name, (before,), (after,), attributes)


def prefill_scores(heads: int, kv_heads: int, length: int, width: int, chunk: int) -> OpRecord:
    """Causal attention within one prompt."""
    q = tensor((1, heads, length, width), "bfp8")
    kv = tensor((1, kv_heads, length, width), "bfp8")
    at = {"compute_with_storage_grid_size": "8x8", "q_chunk_size": chunk, "math_fidelity": "HiFi4"}
    flops = attention_flops(heads * length, length / 2, width)
    return op("transformer.scaled_dot_product_attention", (q, kv, kv), (q,), at, flops=flops)


def decode_scores(
    users: int, heads: int, kv_heads: int, width: int, grid: str, q: TensorSpec | None = None
) -> OpRecord:
    """Attention of one query per user."""
    q = q or tensor((1, users, heads, width), buffer="L1")
    cache = tensor((64, kv_heads, 32, width), "bfp8")
    context = 1 << 20
    at = {
        "compute_with_storage_grid_size": grid, "math_fidelity": "HiFi2", "context": context,
        "users": users, "kv_heads": kv_heads,
    }  # fmt: skip
    cached = users * kv_bytes(TILE_BYTES[cache.dtype], kv_heads, context, width)
    flops = attention_flops(users * heads, context, width)
    name = "transformer.paged_scaled_dot_product_attention_decode"
    return op(
        name, (q, cache, cache), (q,), at, flops=flops, dram_bytes=cached, cached_bytes=cached
    )


def ring_product(
    inner: int, columns: int, dtype: str, fidelity: str, *, ahead: bool = True
) -> OpRecord:
    """A product of one tile row on a ring of 24 cores; weights may come to it ahead of time."""
    cores = 24
    weight = tensor((1, 1, inner, columns), dtype, banks=12)
    at = {
        "program_config": "MatmulMultiCoreReuseMultiCast1DProgramConfig",
        "gather_in0": True, "per_core_N": -(-columns // 32 // cores), "math_fidelity": fidelity,
    }  # fmt: skip
    return op(
        "linear",
        (tensor((1, 1, 32, inner), buffer="L1", cores=cores), weight),
        (tensor((1, 1, 32, columns), buffer="L1", cores=cores),),
        at,
        flops=product_flops(32, inner, columns),
        dram_bytes=0 if ahead else weight.sharded_bytes,
    )


def all_parts(width: int, dtype: str) -> OpRecord:
    """A sum over a column of 8 chips: whole parts go everywhere, and are added up there."""
    x = tensor((1, 1, 32, width), dtype, buffer="L1", cores=24)
    out = tensor((1, 1, 32, width), buffer="L1", cores=16)
    at = {"cluster_axis": 0, "num_devices": 8, "num_links": 4, "topology": "Ring"}
    sent = link_bytes(8 * x.stored_bytes, 8, ring=True)
    return op("experimental.all_reduce_async", (x,), (out,), at, link_bytes=sent)
