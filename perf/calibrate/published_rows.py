"""The published figures of whole models as rows that can be predicted and fitted.

published/model_figures.csv: tokens/s/user and TTFT of the generic demo (PERF.md of mid 2025) and
of the Galaxy's 70B demo. published/elsewhere.csv: other tables, harnesses, releases and boards.
What its `role` calls `judge` is never fitted, nor does it make an interval. How software was named,
which sources are kept aside and what was left out: published/README.md.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backends.device_specs import SPECS
from perf.cost.software import Software, software_named
from perf.op_lists.record import GENERATED, Workload
from perf.predict.figures import workload_for
from perf.predict.harness import HARNESSES, REQUESTS, Harness

FIGURES = Path(__file__).parents[1] / "published" / "model_figures.csv"
ELSEWHERE = FIGURES.with_name("elsewhere.csv")
NOT_MODELLED = ("90B",)

# the formats that the tables name, and the fidelities that went with them
_PRECISION = (
    "precision_cfg = {{ff1_3: {ff}, ff2: bfp8, wqkv: bfp8, wo: bfp8, kv_cache: bfp8}}, "
    "fidelity_cfg = {{li_ff1_3: {fidelity}, li_ff2: hifi2fp16, li_qkv_decode: hifi2, "
    "li_o_decode: hifi2, sdpa_decode: hifi2, li_qkv_prefill: hifi2, li_o_prefill: hifi2, "
    "sdpa_prefill: hifi4}}"
)


@dataclass(frozen=True)
class Row:
    """One published configuration; None where a figure is missing."""

    model: str
    device: str
    data_parallel: int
    batch_size: int
    prefill_len: int
    mode: str  # performance, accuracy, custom, galaxy-opt
    precision: str
    tokens_per_s_per_user: float | None
    ttft_ms: float | None
    source: str
    software_name: str = "2025"
    harness_name: str = "demo"
    generated: int = GENERATED
    role: str = "fit"  # or "judge": never fitted
    requests: int = REQUESTS  # of a server's series

    @property
    def software(self) -> Software:
        return software_named("galaxy" if self.mode == "galaxy-opt" else self.software_name)

    @property
    def document(self) -> str:
        """What errs together, whatever part of it a row comes from."""
        return self.source.split(",")[0].split(" tt-metal demo")[0].split(" vLLM")[0]

    @property
    def harness(self) -> Harness:
        return HARNESSES[self.harness_name]

    @property
    def family(self) -> str:
        """Models that share sizes: what is left out together."""
        if not self.model.startswith("Llama"):
            return self.model.split("-")[0].split("2.5")[0]
        size = self.model.split("-")[-1]
        return "Llama 8B" if size in ("8B", "11B") else f"Llama {size}"

    @property
    def workload(self) -> Workload:
        """What reproduces the row."""
        return workload_for(
            self.model,
            SPECS[self.device],
            software=self.software,
            harness=self.harness,
            generated=self.generated,
            batch_size=self.batch_size,
            data_parallel=self.data_parallel,
            prefill_len=self.prefill_len,
            optimizations=self.optimizations,
        )

    @property
    def optimizations(self) -> str:
        """The precision of the row, spelled out."""
        if self.mode in ("custom", "spelled"):
            return self.precision
        always = any(size in self.model for size in ("70B", "72B"))
        low = self.mode in ("performance", "galaxy-opt") or always
        return _PRECISION.format(
            ff="bfp4" if low else "bfp8", fidelity="lofi" if low else "hifi2fp16"
        )

    @property
    def judges_ttft(self) -> bool:
        """Whether its TTFT is comparable: the custom rows come from another harness (45-73 ms for
        what is 24 ms elsewhere), and two Phi rows were later measured at less than half."""
        odd = self.model.startswith("Phi") and self.batch_size == 32
        return self.ttft_ms is not None and self.mode != "custom" and not odd

    def __str__(self) -> str:
        groups = f" DP{self.data_parallel}" if self.data_parallel > 1 else ""
        shape = f"b{self.batch_size} s{self.prefill_len}"
        mode = "" if self.harness_name == "demo" else f" {self.harness_name}"
        return f"{self.model} {self.device}{groups} {shape} {self.mode}{mode}"


def load_rows(path: Path = FIGURES) -> list[Row]:
    """Every row of a table that is modelled."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [_row(line) for line in csv.DictReader(file)]
    return [row for row in rows if not any(size in row.model for size in NOT_MODELLED)]


def _row(line: dict[str, str]) -> Row:
    spelled = line["mode"] if line["mode"].startswith("precision_cfg") else ""
    return Row(
        model=line["model"],
        device=line["device"],
        data_parallel=int(line["dp"]),
        batch_size=int(line["batch"]),
        prefill_len=int(line["prefill_len"]),
        mode="spelled" if spelled else line["mode"],
        precision=spelled or line.get("precision", ""),
        tokens_per_s_per_user=float(line["tsu"]) if line["tsu"] else None,
        ttft_ms=float(line["ttft_ms"]) if line["ttft_ms"] else None,
        source=line["source"],
        software_name=line.get("software", "2025"),
        harness_name=line.get("harness", "demo"),
        generated=int(line.get("generated", GENERATED)),
        role=line.get("role", "fit"),
        requests=int(line.get("requests") or REQUESTS),
    )


def twins(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Pairs of rows whose text models and settings are the same: their spread is noise."""
    same = {"Llama-3.2-11B": "Llama-3.1-8B", "Phi-3.5-mini": "Phi-3-mini-128k-instruct"}
    found: dict[tuple[object, ...], Row] = {}
    pairs = []
    for row in rows:
        if row.mode in ("custom", "galaxy-opt"):
            continue
        key = (
            same.get(row.model, row.model), row.device, row.data_parallel, row.batch_size,
            row.prefill_len, row.optimizations,
        )  # fmt: skip
        if key in found:
            pairs.append((found[key], row))
        else:
            found[key] = row
    return pairs
