"""Published timings of single ops as op records, so that the cost model can be held against them.

The tables in published/op_timings.csv name ops in words; shapes they leave out follow from the
model they were taken in (a 70B layer on a Galaxy: 2048 wide, 1280 and 3584 columns a chip).
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.device_specs import SPECS, DeviceSpec
from backends.op_record import TILE_BYTES, OpRecord, TensorSpec
from backends.work import link_bytes, update_bytes
from perf.calibrate.made_ops import (
    all_parts,
    bank_product,
    collective,
    decode_scores,
    op,
    prefill_scores,
    product,
    ring_product,
    simple,
    tensor,
)
from perf.cost.constants import Constants
from perf.cost.software import SOFTWARE, Software
from perf.cost.units import Situation

TIMINGS = Path(__file__).parents[1] / "published" / "op_timings.csv"


@dataclass(frozen=True)
class OpRow:
    """A published time and the records it covers."""

    source: str
    device: str
    name: str
    us: float
    records: tuple[OpRecord, ...]
    spec: DeviceSpec
    software: Software
    context: int = 0
    active_users: int = 1
    is_grid: bool = False
    isolated: bool = False

    def state(self, constants: Constants) -> Situation:
        """How the cost model sees the run it was timed in."""
        return Situation(
            self.spec, constants, self.software, self.context, self.active_users, self.is_grid,
            self.isolated,
        )  # fmt: skip


def load_op_rows(path: Path = TIMINGS) -> tuple[list[OpRow], list[str]]:
    """Rows that stand for ops, and the names of those that do not (host work, sums of a model)."""
    rows, skipped = [], []
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            row = _op_row(line)
            if row is None:
                skipped.append(line["op"])
            else:
                rows.append(row)
    return rows, skipped


def row_op(name: str, width: int, dtype: str, **more: Any) -> OpRecord:
    """An op of a row of chips that moves `width` columns; `more` is of a product beside it."""
    whole = tensor((1, 1, 32, width), dtype, buffer="L1", cores=24)
    x = more.pop("x", whole)
    at = {"cluster_axis": 1, "num_devices": 4, "num_links": 3, "topology": "Ring"} | more
    sent = link_bytes(whole.stored_bytes, 4, ring=True)
    return op(f"experimental.{name}", (x,), (whole,), at, link_bytes=sent)


def _candidates(dtype: str) -> OpRecord:
    """The best 32 columns of 8 chips for each of 32 users, gathered."""
    every = collective("all_gather", (1, 1, 32, 256), dtype, chips=8, axis=0, ring=True, links=4)
    return replace(every, name="experimental.all_gather_async")


def _galaxy_decode() -> dict[str, tuple[OpRecord, ...]]:
    """The ops of one 70B decode layer on a Galaxy and of its tail, by their published names."""
    wide = tensor((1, 1, 32, 2048), buffer="L1", cores=16)
    user = tensor((1, 8, 8, 128), buffer="L1")
    heads = replace(user, layout="ROW_MAJOR", memory_layout="HEIGHT_SHARDED", shard=(8, 128))
    small = tensor((1, 1, 32, 896), "bfp8", buffer="L1", cores=28)
    cache = tensor((64, 1, 32, 128), "bfp8")
    moved = 2 * update_bytes(TILE_BYTES[cache.dtype], 8, 1, 128)
    update = op("experimental.paged_fused_update_cache", (cache, heads, cache, heads),
                (cache, cache), {"users": 8}, dram_bytes=moved, cached_bytes=moved)  # fmt: skip
    logits = tensor((1, 1, 32, 16384))
    spread = tensor((1, 1, 32, 16384), buffer="L1", cores=32)

    def total(width: int, dtype: str) -> OpRecord:
        return collective(
            "all_reduce", (1, 1, 32, width), dtype, chips=4, axis=1, ring=True, links=3
        )

    joined = tensor((1, 1, 32, 1024), buffer="L1", cores=16)
    stats = tensor((1, 1, 32, 128), "f32", buffer="L1", cores=1)
    exchange = row_op("all_gather_async", 128, "bf16").attributes | {"num_links": 1}
    norm = op("fused_rms_minimal", (wide, stats), (wide,), exchange,
              link_bytes=link_bytes(stats.stored_bytes, 4, ring=True))  # fmt: skip
    gate = ring_product(2048, 3840, "bfp4", "LoFi")
    gates = row_op("llama_rs_matmul", 3840, "bfp8", x=gate.inputs[0], **gate.attributes)
    return {
        "decode/RMS+AllGather (attn)": (norm,),
        "decode/RMS+AllGather (ff)": (norm,),
        "decode/QKV matmul (prefetched)": (ring_product(2048, 1280, "bfp8", "HiFi2"),),
        "decode/ReduceScatter+CreateHeads": (row_op("llama_rs_create_heads", 1280, "bf16"),),
        "decode/Rotary fused QK": (
            simple("experimental.rotary_embedding_llama_fused_qk", heads, heads),
        ),
        "decode/PagedUpdateCache": (update,),
        "decode/SDPA decode s128": (decode_scores(8, 8, 1, 128, "8x4", q=heads),),
        "decode/AllGatherConcat": (
            row_op("all_gather_async", 1024, "bf16"),
            simple("tilize", joined, joined),
        ),
        "decode/WO matmul": (ring_product(1024, 2048, "bfp8", "HiFi2"),),
        "decode/AllReduce WO": (all_parts(2048, "bfp8"),),
        "decode/FF1/FF3 matmul+RS fused": (gates,),
        "decode/ReduceScatter FF3": (row_op("llama_reduce_scatter", 3840, "bfp8"),),
        "decode/Mul+SiLU": (simple("multiply", small, small),),
        "decode/AllGather (mul)": (row_op("all_gather_async", 3840, "bfp8"),),
        "decode/FF2 matmul": (ring_product(3840, 2048, "bfp8", "HiFi2"),),
        "decode/AllReduce FF2": (all_parts(2048, "bfp8"),),
        "tail/LM head matmul": (ring_product(2048, 16384, "bfp8", "HiFi2", ahead=False),),
        "tail/TopK": (simple("topk", logits, tensor((1, 1, 32, 32))),),
        "tail/Sampling": (simple("sampling", tensor((1, 1, 32, 256)), tensor((1, 1, 1, 32))),),
        "tail/AllReduce logits": (total(16384, "bfp8"),),
        "tail/AllGather values": (_candidates("bf16"),),
        "tail/AllGather indices": (_candidates("i32"),),
        "tail/RMS final": (norm,),
        "tail/I2S": (simple("interleaved_to_sharded", logits, spread),),
        "tail/Typecast": (simple("typecast", logits, logits),),
    }


def _galaxy_prefill() -> dict[str, tuple[OpRecord, ...]]:
    """The ops of one 70B prefill layer of 128 tokens on a Galaxy, with its older collectives."""
    rows = 128
    wide, stats = tensor((1, 1, rows, 2048)), tensor((1, 1, rows, 32))
    qkv, q = tensor((1, 1, rows, 1280)), tensor((1, 8, rows, 128))
    k, mixed = tensor((1, 1, rows, 128)), tensor((1, 1, rows, 1024), "bfp8")

    def ccl(kind: str, width: int, dtype: str, axis: int) -> tuple[OpRecord, ...]:
        chips = 8 if axis == 0 else 4
        return (collective(kind, (1, 1, rows, width), dtype, chips=chips, axis=axis, links=3),)

    def prefill(name: str) -> str:
        return f"prefill128/{name}"

    gate = (product(rows, 2048, 3584, "bfp4", "LoFi"),)
    rotary, heads = "experimental.rotary_embedding_llama", "experimental.nlp_create_qkv_heads"
    ops = {
        "LayerNormPreAllGather": (simple("rms_norm_pre_all_gather", wide, stats),),
        "AllGather stats": ccl("all_gather", 128, "bf16", 1),
        "LayerNormPostAllGather": (simple("rms_norm_post_all_gather", wide, wide),),
        "QKV matmul": (product(rows, 2048, 1280, "bfp8", "HiFi2"),),
        "ReduceScatter QKV": ccl("reduce_scatter", 1280, "bf16", 1),
        "AllGather QKV": ccl("all_gather", 1280, "bf16", 1),
        "CreateHeads": (simple(heads, qkv, q),),
        "Rotary Q": (simple(rotary, q, q),),
        "Rotary K": (simple(rotary, k, k),),
        "SDPA": (prefill_scores(8, 1, rows, 128, 64),),
        "ConcatHeads": (simple("experimental.nlp_concat_heads", replace(q), mixed),),
        "WO matmul": (product(rows, 1024, 2048, "bfp8", "HiFi2"),),
        "ReduceScatter WO": ccl("reduce_scatter", 2048, "bfp8", 0),
        "AllGather WO": ccl("all_gather", 2048, "bfp8", 0),
        "Add": (simple("add", wide, wide),),
        "FF1 matmul": gate,
        "FF3 matmul": gate,
        "ReduceScatter FF1": ccl("reduce_scatter", 3584, "bfp8", 1),
        "Mul": (simple("multiply", tensor((1, 1, rows, 896), "bfp8"), tensor((1, 1, rows, 896))),),
        "AllGather FF2 in": ccl("all_gather", 3584, "bfp8", 1),
        "FF2 matmul": (product(rows, 3584, 2048, "bfp8", "HiFi2"),),
        "ReduceScatter FF2": ccl("reduce_scatter", 2048, "bf16", 0),
        "AllGather FF2": ccl("all_gather", 2048, "bf16", 0),
    }
    return {prefill(name): records for name, records in ops.items()}


def _n300_decode() -> dict[str, tuple[OpRecord, ...]]:
    """Ops of a Qwen3-8B decode step on an N300."""
    stream = tensor((1, 1, 32, 4096), buffer="L1", cores=32)
    whole = (1, 1, 32, 4096)

    def halves(cores: int) -> TensorSpec:
        return tensor((1, 1, 32, 6144), "bfp8", buffer="L1", cores=cores)

    return {
        "decode/SDPA decode 32k per layer": (decode_scores(1, 16, 4, 128, "8x8"),),
        "decode/reduce_scatter per call": (collective("reduce_scatter", whole, "bf16", chips=2),),
        "decode/all_gather per call": (collective("all_gather", whole, "bf16", chips=2),),
        "decode/norm width-sharded per call": (simple("rms_norm", stream, stream),),
        "decode/w1/w3 4096x6144 bfp4, 64-core grid": (
            bank_product(4096, 6144, "bfp4", "LoFi", block=2),
        ),
        "decode/w1/w3 4096x6144 bfp4, 8-core grid": (
            bank_product(4096, 6144, "bfp4", "LoFi", block=8),
        ),
        "decode/mul 64 cores": (simple("multiply", halves(64), halves(64)),),
        "decode/mul 8 cores": (simple("multiply", halves(8), halves(8)),),
    }


def _tabled_collective(line: dict[str, str]) -> OpRow:
    """A row of the collectives report: a traced loop over one op."""
    chips, blackhole = int(line["cores_or_n"]), "BH" in line["device"]
    elements = int(line["shape_or_bytes"]) // 2
    width = min(elements // 32, 8192)
    record = collective(
        line["op"],
        (1, 1, max(32, elements // width), width),
        "bf16",
        chips=chips,
        ring="ring" in line["note"],
        links=2 if blackhole else 1,
    )
    base = SPECS["P150"] if blackhole else SPECS["T3K"]
    spec = replace(
        base, mesh_shape=(1, chips), links=(0, 2 if blackhole else 1),
        link_gbps=25.0 if blackhole else 12.5,
    )  # fmt: skip
    return _row(line, (record,), spec, SOFTWARE["2026"], isolated=True)


def _gemm(line: dict[str, str]) -> OpRow:
    m, k, n = (int(part) for part in line["shape_or_bytes"].split("x"))
    record = product(m, k, n, line["dtype"], line["fidelity"], left=line["dtype"])
    return _row(line, (record,), SPECS["N150"], SOFTWARE["2026"])


_BLACKHOLE: dict[str, tuple[OpRecord, int, int]] = {  # record, context, users
    "sdpa_decode b8 s32768 K+V 570 MB": (decode_scores(8, 32, 8, 128, "11x10"), 32768, 8),
    **{
        f"sdpa prefill S{length} 32q/8kv d128": (
            prefill_scores(32, 8, length, 128, 256 if length >= 2048 else 64),
            0,
            1,
        )
        for length in (1024, 4096, 8192)
    },
}


def _row(
    line: dict[str, str], records: tuple[OpRecord, ...], spec: DeviceSpec, software: Software,
    **state: Any,
) -> OpRow:  # fmt: skip
    name, us = line["op"], float(line["time_us"])
    return OpRow(line["source"], line["device"], name, us, records, spec, software, **state)


def _op_row(line: dict[str, str]) -> OpRow | None:
    """The records of one line of the table; None for what is no op of a known shape."""
    name, device = line["op"], line["device"]
    if name in ("all_gather", "reduce_scatter"):
        return _tabled_collective(line)
    if name == "matmul DRAM/DRAM":
        return _gemm(line)
    if name in _BLACKHOLE:
        record, context, users = _BLACKHOLE[name]
        return _row(
            line, (record,), SPECS[device], SOFTWARE["2026"], context=context, active_users=users
        )
    tables: list[tuple[Callable[[], dict[str, tuple[OpRecord, ...]]], str, str, dict[str, Any]]] = [
        (_galaxy_decode, "TG", "galaxy",
         {"is_grid": True, "context": 160, "active_users": 32}),
        (_galaxy_prefill, "TG", "2025", {"is_grid": True}),
        (_n300_decode, "N300", "2026", {"context": 32768}),
    ]  # fmt: skip
    for table, spec, software, state in tables:
        records = table().get(name)
        if records and (spec == "N300") == (device == "N300"):
            return _row(line, records, SPECS[spec], SOFTWARE[software], **state)
    return None
