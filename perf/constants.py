"""The few numbers that the performance model cannot derive: named, with unit, range and source.

Values lie in constants.json, written by perf/calibrate.py; the ranges here bound its search. Facts
about products (bandwidths, clocks, grids) are in backends/device_specs.py instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

_CCL = "asymptotes of the tables in tt-metal's tech report CCLs"
PATH = Path(__file__).with_name("constants.json")


def _constant(
    low: float, high: float, unit: str, meaning: str, *, fit: str = "", source: str = ""
) -> Any:
    """A field; `fit` names the rows that determine it ("" keeps the published value)."""
    facts = {
        "low": low, "high": high, "unit": unit, "meaning": meaning, "fit": fit, "source": source,
    }  # fmt: skip
    return field(default=(low * high) ** 0.5, metadata=facts)


@dataclass(frozen=True)
class Constants:
    """Every constant of the model; cycles are of the compute clock, GB are 10^9 bytes."""

    # --- launches and small ops
    gap_us: float = _constant(
        0.6, 6, "us", "between two ops of a replayed trace", fit="decode",
        source="tt-metal#12074: 3-6 us in 2024; Galaxy decoder targets 2025: 0.7 us",
    )  # fmt: skip
    l1_op_us: float = _constant(
        0.5, 8, "us", "start and end of a kernel on L1 operands", fit="decode",
        source="Galaxy decoder targets: rotary 2.2, multiply 2.4, cache update 4.5 us",
    )  # fmt: skip
    dram_op_us: float = _constant(
        2, 20, "us", "start and end of a kernel on operands in DRAM", fit="ops",
        source="Galaxy prefill-128 targets: add 8.4, multiply 7.3 us",
    )  # fmt: skip
    eltwise_cycles: float = _constant(
        100, 1500, "cycles/tile", "one core moves a tile through reader, unpacker and writer",
        fit="ops", source="Qwen3-8B: multiply of 24 tiles a core 21.8 us, of 3 tiles 3.3 us",
    )  # fmt: skip
    move_cycles: float = _constant(
        100, 1500, "cycles/tile", "one core moves a tile without computing", fit="ops",
        source="Galaxy prefill-128 targets: 40 tiles a core 22.0, 32 tiles 17.7 us",
    )  # fmt: skip
    norm_cycles: float = _constant(
        150, 2000, "cycles/tile", "the same in a norm, which passes over a row more than once",
        fit="ops", source="Galaxy prefill-128 targets: 64 tiles a core 38.3 and 43.8 us",
    )  # fmt: skip
    norm_us: float = _constant(
        2, 20, "us", "start, end and exchange of statistics between the cores of a sharded norm",
        fit="ops decode", source="Qwen3-8B: width-sharded norm 14.6 us",
    )  # fmt: skip

    # --- DRAM
    dram_sharded: float = _constant(
        0.75, 0.95, "of peak", "weights streamed by the core beside each bank", fit="decode",
        source="82-92 % (tech report Saturating DRAM bandwidth)",
    )  # fmt: skip
    dram_interleaved: float = _constant(
        0.5, 0.85, "of peak", "pages read by cores anywhere on the grid", fit="decode",
        source="190 of 288 GB/s (tech report LLMs 4.6.1)",
    )  # fmt: skip
    dram_one_reader_bh: float = _constant(
        0.7, 0.7, "of peak", "Blackhole with one reader per bank on one NoC",
        source="tt-metal#30780, #23560",
    )  # fmt: skip

    # --- decode matmul (DRAM-sharded)
    matmul_us: float = _constant(
        1, 8, "us", "start and end of a DRAM-sharded matmul", fit="decode",
        source="Qwen3-8B fit: 4.95 us per call, gap included",
    )  # fmt: skip
    lofi_cycles: float = _constant(
        16, 40, "cycles/tile product", "decode matmul at LoFi, bound by unpacking", fit="decode"
    )
    hifi2_cycles: float = _constant(
        32, 50, "cycles/tile product", "decode matmul at HiFi2", fit="decode"
    )
    hifi4_cycles: float = _constant(
        64, 80, "cycles/tile product", "decode matmul at HiFi4", fit="decode"
    )
    block_cycles: float = _constant(
        100, 1500, "cycles/block", "sharing one block of activations with all bank cores",
        fit="decode",
    )  # fmt: skip

    # --- decode attention
    sdpa_us: float = _constant(
        5, 60, "us", "decode attention without a context", fit="decode",
        source="Qwen3-8B fit: 41.4 us per layer",
    )  # fmt: skip
    sdpa_tile_cycles: float = _constant(
        800, 4000, "cycles/32 positions", "scores, softmax and values of one head on one core",
        fit="decode", source="16 cores of T3K read 56 GB/s at head width 128, 30 GB/s at 64",
    )  # fmt: skip
    sdpa_merge_us: float = _constant(
        1, 12, "us/level", "merging what the cores of one head have found, by pairs", fit="decode",
        source="Galaxy 70B: 9 us at 128 positions, 37 us at 1024",
    )  # fmt: skip
    sdpa_group_us: float = _constant(
        1, 20, "us", "each further head that a core serves", fit="decode"
    )

    # --- prefill
    matmul2d_us: float = _constant(
        3, 20, "us", "start and end of a 2D matmul", fit="ops",
        source="Galaxy prefill-128 targets",
    )  # fmt: skip
    reader_gbps: float = _constant(
        5, 14, "GB/s", "one core reading operand blocks from DRAM before it shares them", fit="ops",
        source="Galaxy prefill-128 targets: 8 readers draw 67-71 GB/s",
    )  # fmt: skip
    lofi_cycles_2d: float = _constant(
        20, 60, "cycles/tile product", "prefill matmul at LoFi", fit="prefill",
        source="tech report GEMM_FLOPS: 50-53 % of peak",
    )  # fmt: skip
    hifi2_cycles_2d: float = _constant(
        40, 90, "cycles/tile product", "prefill matmul at HiFi2", fit="prefill",
        source="tech report GEMM_FLOPS: 52-54 % of peak",
    )  # fmt: skip
    sdpa_prefill_us: float = _constant(
        5, 40, "us", "start and end of prefill attention", fit="ops",
        source="Galaxy prefill-128 targets: 30.3 us",
    )  # fmt: skip
    sdpa_matmul_cycles: float = _constant(
        64, 200, "cycles/tile product", "prefill attention's products at HiFi4", fit="prefill"
    )
    sdpa_softmax_cycles: float = _constant(
        200, 1500, "cycles/tile", "prefill attention's softmax of one tile of scores",
        fit="prefill",
    )  # fmt: skip

    # --- links (tt-metal tech report CCLs, tables of 2026)
    gather_us: float = _constant(3, 12, "us", "start and end of an all-gather", fit="ops")
    scatter_us: float = _constant(3, 12, "us", "start and end of a reduce-scatter", fit="ops")
    gather_hop_us: float = _constant(0.3, 3, "us", "each chip an all-gather passes", fit="ops")
    scatter_hop_us: float = _constant(0.3, 4, "us", "each chip a reduce-scatter passes", fit="ops")
    gather_rate: float = _constant(0.94, 0.94, "of line rate", "all-gather on a line", source=_CCL)
    scatter_rate: float = _constant(
        0.84, 0.84, "of line rate", "reduce-scatter on a line", source=_CCL
    )
    gather_rate_ring: float = _constant(
        0.83, 0.83, "of line rate", "all-gather on a ring", source=_CCL
    )
    scatter_rate_ring: float = _constant(
        0.66, 0.66, "of line rate", "reduce-scatter on a ring", source=_CCL
    )
    gather_rate_pair: float = _constant(
        0.51, 0.51, "of line rate", "all-gather of two chips", source=_CCL
    )
    scatter_rate_pair: float = _constant(
        0.71, 0.71, "of line rate", "reduce-scatter of two chips", source=_CCL
    )
    gather_rate_bh: float = _constant(
        0.95, 0.95, "of line rate", "all-gather on Blackhole", source=_CCL
    )
    scatter_rate_bh: float = _constant(
        0.78, 0.78, "of line rate", "reduce-scatter on Blackhole", source=_CCL
    )
    link_latency_bh: float = _constant(
        0.724, 0.724, "ratio", "latency on Blackhole to that on Wormhole",
        source="hops of 515 and 711 ns (tech report CCLs)",
    )  # fmt: skip
    link_skew_us: float = _constant(
        0.1, 12, "us/chip", "more than two chips wait for each other at a collective", fit="decode",
        source="Qwen3-8B on N300: 23.6 and 27.1 us, as the tables",
    )  # fmt: skip
    link_row_us: float = _constant(
        0.2, 12, "us/chip/row", "the same at each further row of tiles", fit="prefill"
    )
    fused_gather: float = _constant(
        0.1, 1, "ratio", "an all-gather that runs inside a matmul, against one by itself",
        fit="decode",
    )  # fmt: skip
    grid_us: float = _constant(
        15, 60, "us", "one pass of the 2024-25 collectives along an axis of a 2D mesh", fit="ops decode",
        source="Galaxy prefill-128 targets: gather of statistics 32.9 us",
    )  # fmt: skip
    grid_gather_gbps: float = _constant(
        5, 37, "GB/s", "their all-gathers", fit="ops", source="the same"
    )
    grid_scatter_gbps: float = _constant(
        1, 15, "GB/s", "their reduce-scatters", fit="ops", source="the same"
    )

    # --- the last ops of a step
    topk_cycles: float = _constant(
        17.6, 17.6, "cycles/column", "top-k of 32 rows",
        source="Galaxy decoder targets: 288.7 us for 16384 columns",
    )  # fmt: skip
    sampling_us: float = _constant(
        67.7, 67.7, "us", "draw from 256 candidates", source="Galaxy decoder targets"
    )

    # --- host
    host_step_ms: float = _constant(
        0.3, 4, "ms", "one decode step: inputs, trace start, token back", fit="decode"
    )
    host_logits_ms: float = _constant(
        0.3, 2.5, "ms/10^6", "host: reading logits of all chips and taking the best", fit="decode",
        source="Qwen3-8B: read 2.6 ms, argmax 1.8 ms for 4.9 million",
    )  # fmt: skip
    host_logits_chip_ms: float = _constant(
        0.05, 1.5, "ms/10^6", "one chip's share of the logits: untilize, PCIe", fit="decode"
    )
    host_group_ms: float = _constant(
        0.1, 1.5, "ms", "each further data-parallel group of a step", fit="decode"
    )
    host_prefill_ms: float = _constant(
        0.5, 15, "ms", "host work around one user's prefill", fit="prefill"
    )
    host_batch_ms: float = _constant(
        0.5, 20, "ms", "more of it per user of a batch of 32", fit="prefill"
    )
    host_op_us: float = _constant(
        10, 60, "us", "dispatch of one op without a trace", fit="prefill"
    )
    host_link_op_us: float = _constant(
        20, 300, "us", "dispatch of one collective without a trace", fit="prefill"
    )
    host_chip_us: float = _constant(
        0.2, 15, "us", "dispatch of one op to each further chip", fit="prefill"
    )
    group_overlap: float = _constant(
        0.5, 1, "ratio", "prefill per user when data-parallel groups take turns", fit="prefill"
    )

    # --- the 70B Galaxy software of mid 2025
    galaxy_gap_us: float = _constant(
        0.73, 0.73, "us", "between two ops of its replayed trace",
        source="Galaxy decoder targets: op-to-op 0.60-0.87 us",
    )  # fmt: skip
    galaxy_link_us: float = _constant(
        2, 10, "us", "one pass of its collectives, persistent buffers", fit="ops decode",
        source="Galaxy decoder targets: reduce-scatter 7.2, all-reduce 13.4 us",
    )  # fmt: skip
    galaxy_sdpa_us: float = _constant(
        3, 15, "us", "its decode attention without a context", fit="ops decode",
        source="Galaxy decoder targets: 9.2 us at 128",
    )  # fmt: skip
    galaxy_matmul_us: float = _constant(
        1, 8, "us", "its prefetched matmuls: start and end", fit="ops decode",
        source="Galaxy decoder targets: 7.1-17.5 us",
    )  # fmt: skip

    def with_values(self, values: Mapping[str, float]) -> Constants:
        """A copy with some values replaced; an unknown name answers with the list."""
        unknown = set(values) - {f.name for f in fields(self)}
        if unknown:
            names = ", ".join(f.name for f in fields(self))
            raise ValueError(f"unknown constant {', '.join(sorted(unknown))}: known are {names}")
        return replace(self, **values)


def fitted(*rows: str) -> list[str]:
    """Names of the constants that the given rows (decode, prefill, ops) determine."""
    return [f.name for f in fields(Constants) if set(rows) & set(f.metadata["fit"].split())]


def facts(name: str) -> Mapping[str, Any]:
    """Unit, range, meaning, source of a constant."""
    return next(f.metadata for f in fields(Constants) if f.name == name)


@cache
def load_constants(path: Path = PATH) -> Constants:
    """The calibrated values."""
    stored = json.loads(path.read_text(encoding="utf-8"))["constants"]
    return Constants(**{name: entry["value"] for name, entry in stored.items()})


def dump_constants(values: Constants, provenance: Mapping[str, Any], path: Path = PATH) -> None:
    """Write values with their units and where they come from."""
    entries = {}
    for f in fields(Constants):
        origin = f"fitted to {f.metadata['fit']} rows" if f.metadata["fit"] else "published"
        entries[f.name] = {
            "value": round_to(getattr(values, f.name)),
            "unit": f.metadata["unit"],
            "meaning": f.metadata["meaning"],
            "origin": "; ".join(filter(None, (origin, f.metadata["source"]))),
        }
    text = json.dumps({"provenance": provenance, "constants": entries}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    load_constants.cache_clear()


def round_to(value: float, digits: int = 4) -> float:
    """`value` with so many significant digits: more would pretend to be known."""
    return float(f"{value:.{digits}g}")


def names_in(values: Iterable[str]) -> str:
    """Names as a readable list."""
    return ", ".join(values)


def intervals(path: Path = PATH) -> dict[str, tuple[float, float]]:
    """Ratios (low, high) that held 80 % of measured over predicted figures on rows not fitted."""
    stored = json.loads(path.read_text(encoding="utf-8"))["provenance"]["interval"]
    return {name: (low, high) for name, (low, high) in stored.items()}
