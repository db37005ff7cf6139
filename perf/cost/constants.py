"""The few numbers that the performance model cannot derive: named, with unit, range and source.

Values lie in constants.json, written by `python -m perf.calibrate`. Facts about products
(bandwidths, clocks, grids) are in backends/device_specs.py instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("constants.json")

# where values come from
_CCL = "asymptotes of the tables in tt-metal's tech report CCLs"
_DECODER = "llama3_70b_galaxy decoder_perf_targets_6u.json"
_PREFILL = "llama3_70b_galaxy perf_targets/prefill_128.json"
_SCORES = (
    "tt-metal#56693, #56942, #57267: 8B's heads on a p100a, HiFi4, float32 sums, 64 cores: 333 and "
    "372 us of 1024 tokens in blocks of 64, 2950 of 4096 and 11568 of 8192 in blocks of 256, where "
    "a pair takes 920 cycles; what 64K and 128K on a Galaxy differ by in #41837 says 880"
)
_SERVER = "release reports of tt-inference-server"
_QWEN = "tt_transformers QWEN3_8B_LONG_CONTEXT.md, N300"


def _fitted(
    guess: float, low: float, high: float, unit: str, meaning: str, rows: str, source: str = ""
) -> Any:
    """Found by calibration from `rows`, starting at `guess`.

    Rows are "ops", "decode", "prefill", and those of other tables: "elsewhere", "elsewhere_ttft".
    """
    facts = {"low": low, "high": high, "unit": unit, "meaning": meaning, "rows": rows.split()}
    return field(default=guess, metadata=facts | {"source": source})


def _known(value: float, unit: str, meaning: str, source: str) -> Any:
    """Taken as published."""
    facts = {"low": value, "high": value, "unit": unit, "meaning": meaning, "rows": []}
    return field(default=value, metadata=facts | {"source": source})


@dataclass(frozen=True)
class Constants:
    """Every constant of the model; cycles are of the compute clock, GB are 10^9 bytes."""

    # --- launches and small ops
    gap_us: float = _fitted(
        2, 0.6, 6, "us", "between two ops of a replayed trace", "decode",
        "tt-metal#12074: 3-6 us in 2024; Galaxy in 2025: 0.7 us",
    )  # fmt: skip
    l1_op_us: float = _fitted(
        1.5, 0.5, 5, "us", "start and end of a kernel on L1 operands", "decode", _DECODER
    )
    dram_op_us: float = _fitted(
        5, 2, 15, "us", "start and end of a kernel on operands in DRAM", "ops", _PREFILL
    )
    eltwise_cycles: float = _fitted(
        600, 100, 1500, "cycles/tile", "one core computes on a tile", "ops", _QWEN
    )
    move_cycles: float = _fitted(
        400, 100, 1500, "cycles/tile", "one core moves a tile without computing", "ops", _PREFILL
    )
    update_cycles: float = _fitted(
        300, 50, 1000, "cycles/tile", "one core untilizes, changes and tilizes a tile of a cache",
        "decode", _DECODER,
    )  # fmt: skip
    update_us: float = _fitted(
        3, 1, 8, "us", "start and end of an update of both caches, which waits for tiles in DRAM",
        "ops", _DECODER,
    )  # fmt: skip
    norm_cycles: float = _fitted(
        600, 150, 2000, "cycles/tile", "one core norms a tile of its row", "ops", _PREFILL
    )
    norm_us: float = _fitted(
        11, 4, 16, "us", "start and end of a norm whose cores exchange statistics", "ops decode",
        _QWEN,
    )  # fmt: skip

    # --- DRAM
    dram_sharded: float = _fitted(
        0.89, 0.8, 0.95, "of peak", "weights streamed by the core beside each bank", "decode",
        "82-92 % (tech report Saturating DRAM bandwidth)",
    )  # fmt: skip
    dram_interleaved: float = _fitted(
        0.66, 0.55, 0.75, "of peak", "pages read by cores anywhere on the grid", "decode",
        "190 of 288 GB/s (tech report LLMs 4.6.1)",
    )  # fmt: skip
    dram_one_reader_bh: float = _known(
        0.7, "of peak", "Blackhole with one reader per bank on one NoC", "tt-metal#30780, #23560"
    )

    # --- decode matmul (DRAM-sharded)
    matmul_us: float = _fitted(
        3, 1, 6, "us", "start and end of a DRAM-sharded matmul", "decode",
        _QWEN + ": 4.95 us per call, gap included",
    )  # fmt: skip
    lofi_cycles: float = _fitted(
        26, 16, 40, "cycles/tile product", "at LoFi, bound by unpacking", "decode"
    )
    lofi_cycles_bh: float = _known(
        17, "cycles/tile product", "at LoFi on Blackhole, which unpacks fast enough",
        "55 % of DRAM bandwidth with one reader per bank (tt-metal PR 54242)",
    )  # fmt: skip
    hifi2_cycles: float = _fitted(34, 32, 50, "cycles/tile product", "at HiFi2", "decode")
    hifi4_cycles: float = _fitted(64, 64, 80, "cycles/tile product", "at HiFi4", "decode")
    block_cycles: float = _fitted(
        500, 100, 1500, "cycles/block", "a block of activations goes to all bank cores", "decode"
    )

    # --- decode attention
    sdpa_us: float = _fitted(
        20, 5, 45, "us", "decode attention of a short context", "decode", _QWEN
    )
    sdpa_alone_cycles: float = _fitted(
        1300, 600, 4000, "cycles/32 positions", "scores, softmax, values of one head on one core",
        "elsewhere", _SERVER,
    )  # fmt: skip
    sdpa_shared_cycles: float = _fitted(
        60, 10, 200, "cycles/32 positions", "what the cores of one head cannot share of that",
        "decode", "16 cores of T3K read 56 GB/s at head width 128, 30 GB/s at 64",
    )  # fmt: skip
    sdpa_merge_us: float = _fitted(
        6, 1, 12, "us/level", "merging what the cores of one head have found, by pairs", "decode",
        "Galaxy: 9 us at 128 positions, 37 us at 1024",
    )  # fmt: skip
    sdpa_group_us: float = _fitted(8, 1, 20, "us", "each further head that a core serves", "decode")

    # --- prefill
    matmul2d_us: float = _fitted(8, 3, 20, "us", "start and end of a 2D matmul", "ops", _PREFILL)
    reader_gbps: float = _fitted(
        9, 5, 14, "GB/s", "one core draws operand blocks from DRAM, to share them", "ops", _PREFILL
    )
    reader_gbps_bh: float = _fitted(
        18, 6, 30, "GB/s", "the same on Blackhole, at a clock of 1 GHz", "elsewhere_ttft"
    )
    lofi_cycles_2d: float = _fitted(
        36, 20, 60, "cycles/tile product", "prefill matmul at LoFi", "ops prefill",
        "tech report GEMM_FLOPS: 50-53 % of peak",
    )  # fmt: skip
    hifi2_cycles_2d: float = _fitted(
        59, 40, 90, "cycles/tile product", "prefill matmul at HiFi2", "ops prefill",
        "tech report GEMM_FLOPS: 52-54 % of peak",
    )  # fmt: skip
    cycles_2d_bh: float = _fitted(
        0.8, 0.5, 1, "ratio", "those of Blackhole, which unpacks faster", "elsewhere_ttft",
        "tech report GEMM_FLOPS: 61 % of shapes above 80 % of peak, Wormhole 32 %",
    )  # fmt: skip
    sdpa_prefill_us: float = _fitted(
        20, 5, 40, "us", "start and end of prefill attention", "ops", _PREFILL
    )
    sdpa_matmul_cycles: float = _fitted(
        110, 64, 200, "cycles/tile product", "prefill attention's products at HiFi4", "ops prefill"
    )
    sdpa_softmax_cycles: float = _fitted(
        580, 200, 1500, "cycles/tile", "prefill attention's softmax of a tile of scores",
        "ops prefill",
    )  # fmt: skip

    later_scores: float = _known(
        0.404, "ratio", "a pair of tiles in the prefill attention of 2026 to one of mid 2025",
        _SCORES,
    )  # fmt: skip
    later_scores_step: float = _known(
        1.13, "ratio", "the same: a step through a tile of keys, shared by the tiles of a block",
        _SCORES,
    )  # fmt: skip

    # --- links
    gather_us: float = _fitted(4, 1, 12, "us", "start and end of an all-gather", "ops", _CCL)
    scatter_us: float = _fitted(4, 1, 12, "us", "start and end of a reduce-scatter", "ops", _CCL)
    gather_hop_us: float = _fitted(1.7, 0.3, 4, "us", "each chip an all-gather passes", "ops", _CCL)
    scatter_hop_us: float = _fitted(
        2, 0.3, 5, "us", "each chip a reduce-scatter passes", "ops", _CCL
    )
    gather_rate: float = _known(0.94, "of line rate", "all-gather on a line", _CCL)
    scatter_rate: float = _known(0.84, "of line rate", "reduce-scatter on a line", _CCL)
    gather_rate_ring: float = _known(0.83, "of line rate", "all-gather on a ring", _CCL)
    scatter_rate_ring: float = _known(0.66, "of line rate", "reduce-scatter on a ring", _CCL)
    gather_rate_pair: float = _known(0.51, "of line rate", "all-gather of two chips", _CCL)
    scatter_rate_pair: float = _known(0.71, "of line rate", "reduce-scatter of two chips", _CCL)
    gather_rate_bh: float = _known(0.95, "of line rate", "all-gather on Blackhole", _CCL)
    scatter_rate_bh: float = _known(0.78, "of line rate", "reduce-scatter on Blackhole", _CCL)
    link_latency_bh: float = _known(
        0.724, "ratio", "latency on Blackhole to Wormhole's", "hops of 515 and 711 ns: " + _CCL
    )
    link_skew_us: float = _fitted(
        3, 0.5, 12, "us/chip", "more than two chips of a model wait for each other", "decode"
    )
    link_early_us: float = _fitted(
        20, 2, 60, "us", "more for each pass of a collective until February 2025", "elsewhere"
    )
    link_skew_fabric_us: float = _fitted(
        1.5, 0.1, 8, "us/chip", "the same with the collectives of 2026", "elsewhere"
    )
    link_row_us: float = _fitted(
        2, 0.2, 12, "us/chip/row", "the same at each further row of tiles", "prefill"
    )
    fused_gather: float = _fitted(
        0.5, 0.1, 1, "ratio", "an all-gather inside a matmul to one by itself", "decode"
    )
    grid_us: float = _fitted(
        33, 15, 60, "us", "a pass of the 2024-25 collectives on a 2D mesh", "ops decode", _PREFILL
    )
    grid_gather_gbps: float = _fitted(14, 5, 37, "GB/s", "their all-gathers", "ops", _PREFILL)
    grid_scatter_gbps: float = _fitted(2.5, 1, 15, "GB/s", "their reduce-scatters", "ops", _PREFILL)

    # --- the last ops of a step
    topk_cycles: float = _known(
        17.6, "cycles/column", "top-k of 32 rows", _DECODER + ": 288.7 us for 16384 columns"
    )
    topk_pass_cycles: float = _known(
        1018, "cycles", "seventh part of a tile that a core searches, half of one that is merged",
        "tt-metal#53793; tt-metal#56797: 132.8 us for 16384 columns on 32 cores of a p100a",
    )  # fmt: skip
    topk_alone_cycles: float = _known(
        569, "cycles/column", "top-k of 32 rows on one core", "tt-metal#38487: 10.8 ms for 18992"
    )
    topk_alone_cycles_bh: float = _known(
        215, "cycles/column", "the same on Blackhole", "tt-metal#53108: 20.4 ms for twice 64128"
    )
    sampling_us: float = _known(67.7, "us", "a draw from 256 candidates", _DECODER)

    # --- host
    host_factor: float = _known(
        1, "ratio", "all host work here to that of the machines behind the published tables",
        "what is asked for (--host)",
    )  # fmt: skip
    host_step_ms: float = _fitted(
        1.5, 0.3, 4, "ms", "one decode step: inputs, trace start, tokens back", "decode", _QWEN
    )
    host_step_chip_ms: float = _fitted(
        0.1, 0.01, 0.4, "ms", "more of it for each further chip, which is told apart", "decode",
        "tt-metal#49284, #49345: eight chips lose 1.6 ms of a step to the host, one and two none; "
        + _QWEN + ": inputs of two chips take 0.82 ms to copy",
    )  # fmt: skip
    host_logits_ms: float = _fitted(
        1.2, 0.3, 2.5, "ms/10^6", "host: read logits of all chips, take the best", "decode", _QWEN
    )
    host_logits_chip_ms: float = _fitted(
        0.5, 0.05, 1.5, "ms/10^6", "one chip's share of logits: untilize, PCIe", "decode", _QWEN
    )
    host_lean_ms: float = _fitted(
        0.5, 0.1, 0.9, "ms", "what later software saves of a decode step", "elsewhere"
    )
    host_group_logits_ms: float = _fitted(
        3, 0.5, 8, "ms/10^6", "logits of each further group, read and sampled in turn", "elsewhere"
    )
    host_group_ms: float = _fitted(
        0.5, 0.1, 1.5, "ms", "each further data-parallel group of a step", "decode"
    )
    host_prefill_ms: float = _fitted(
        5, 0.5, 15, "ms", "host work around one user's prefill", "prefill"
    )
    host_traced_ms: float = _fitted(
        3, 0.3, 6, "ms", "the same around a prefill that is replayed", "elsewhere_ttft"
    )
    host_each_ms: float = _fitted(
        1.2, 0.1, 4, "ms", "more of it for each user of a prefill of many together",
        "elsewhere_ttft",
    )  # fmt: skip
    host_batch_ms: float = _fitted(
        9, 0.5, 20, "ms", "more of it per user where there are many", "prefill"
    )
    host_op_us: float = _fitted(27, 10, 60, "us", "dispatch of an op without a trace", "prefill")
    host_link_op_us: float = _fitted(
        60, 20, 300, "us", "dispatch of a collective without a trace", "prefill"
    )
    host_chip_us: float = _fitted(
        3, 0.2, 15, "us", "dispatch of an op to each further chip", "prefill"
    )
    group_overlap: float = _fitted(
        0.8, 0.5, 1, "ratio", "prefill per user when data-parallel groups take turns", "prefill"
    )

    # --- serving
    server_step_ms: float = _fitted(
        1, 0.1, 8, "ms", "a server's work in a decode step, beside the demo's", "elsewhere", _SERVER
    )
    server_logits_ms: float = _fitted(
        0.5, 0.1, 2.5, "ms/10^6", "it picks tokens, batched, of the logits that it read",
        "elsewhere", _SERVER,
    )  # fmt: skip
    server_ttft_ms: float = _fitted(
        15, 1, 100, "ms", "client and server around the first token", "elsewhere_ttft", _SERVER
    )
    server_first_steps: float = _fitted(
        25, 10, 60, "steps", "the first request of a series waits, before autumn 2025",
        "elsewhere_ttft", _SERVER,
    )  # fmt: skip
    server_early_first: float = _fitted(
        1.5, 1, 3, "ratio", "its wait while servers sampled idle slots, too", "elsewhere_ttft",
        _SERVER,
    )  # fmt: skip

    # --- the Galaxy's own 70B software of mid 2025
    galaxy_gap_us: float = _known(0.73, "us", "between two ops of its replayed trace", _DECODER)
    galaxy_link_us: float = _fitted(
        5.5, 2, 10, "us", "a pass of its collectives on persistent buffers", "ops", _DECODER
    )
    galaxy_join_us: float = _known(2.37, "us", "its heads to tiles: 8.41 less a pass", _DECODER)
    galaxy_sdpa_us: float = _fitted(
        5, 2, 15, "us", "its decode attention of a short context", "ops", _DECODER
    )
    galaxy_matmul_us: float = _fitted(
        3, 1, 8, "us", "start and end of its prefetched matmuls", "ops", _DECODER
    )
    sum_cycles: float = _fitted(
        64, 16, 200, "cycles/tile", "one core adds a tile that another chip sent into its buffer",
        "ops", _DECODER,
    )  # fmt: skip
    galaxy_lofi_cycles: float = _fitted(
        22, 16, 40, "cycles/tile product", "at LoFi on its ring of cores", "ops", _DECODER
    )
    galaxy_norm_us: float = _fitted(
        8, 3, 16, "us", "start and end of its norm, beside the exchange of statistics", "ops",
        _DECODER,
    )  # fmt: skip
    galaxy_sdpa_cycles: float = _fitted(
        1100, 500, 2500, "cycles/32 positions", "its decode attention of one head on one core",
        "decode", "slope of its table from 4K to 64K, where 4 cores attend for a user",
    )  # fmt: skip
    galaxy_scores: float = _fitted(
        0.9, 0.5, 1, "ratio", "its prefill attention to the generic one", "prefill"
    )

    def with_values(self, values: Mapping[str, float]) -> Constants:
        """A copy with some values replaced; an unknown name answers with the list."""
        unknown = set(values) - {f.name for f in fields(self)}
        if unknown:
            names = ", ".join(f.name for f in fields(self))
            raise ValueError(f"unknown constant {', '.join(sorted(unknown))}: known are {names}")
        for name, value in values.items():
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if not known or not 0 < value <= 1e9:
                raise ValueError(f"{name} is {str(value)[:60]}: use a number above 0, up to 1e9")
        return replace(self, **values)


# how far calibration may expect to move from a guess, as a standard deviation of the logarithm:
# published and physical values bind, hardly known ones do not
TIGHT = {
    "dram_sharded": 0.03, "dram_interleaved": 0.08, "hifi2_cycles": 0.1, "hifi4_cycles": 0.05,
    "lofi_cycles": 0.15, "norm_us": 0.2, "grid_us": 0.2, "galaxy_link_us": 0.2,
    "galaxy_matmul_us": 0.2, "galaxy_sdpa_us": 0.3,
    "lofi_cycles_2d": 0.2, "hifi2_cycles_2d": 0.2,
}  # fmt: skip
LOOSE = 0.5


def fitted(rows: str) -> list[str]:
    """Names of the constants that a kind of rows determines."""
    return [f.name for f in fields(Constants) if rows in f.metadata["rows"]]


def facts(name: str) -> Mapping[str, Any]:
    """Unit, range, meaning and source of a constant."""
    return next(f.metadata for f in fields(Constants) if f.name == name)


@cache
def _stored(path: Path = PATH) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def load_constants(path: Path = PATH) -> Constants:
    """The calibrated values."""
    return Constants(**{name: entry["value"] for name, entry in _stored(path)["constants"].items()})


def provenance(path: Path = PATH) -> Mapping[str, Any]:
    """What the constants were fitted to, and the ratios that intervals are made of."""
    return _stored(path)["provenance"]


def as_json(values: Constants, provenance: Mapping[str, Any]) -> str:
    """Text of constants.json: values with their units and where they come from."""
    entries = {}
    for f in fields(Constants):
        rows = f.metadata["rows"]
        origin = f"fitted to {' and '.join(rows)} rows" if rows else "as published"
        entries[f.name] = {
            "value": round_to(getattr(values, f.name)),
            "unit": f.metadata["unit"],
            "meaning": f.metadata["meaning"],
            "origin": "; ".join(filter(None, (origin, f.metadata["source"]))),
        }
    return json.dumps({"provenance": provenance, "constants": entries}, indent=2) + "\n"


def round_to(value: float, digits: int = 3) -> float:
    """`value` rounded to a number of significant digits: more would pretend to be known."""
    return float(f"{value:.{digits}g}")
