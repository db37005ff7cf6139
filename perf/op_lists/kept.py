"""Op lists kept on disk, so that asking again takes milliseconds and loads no torch.

A list is valid for the sources it was recorded from: any change in models/, runtime/ or backends/
records anew. Files lie in generated/op_lists; deleting them is always safe.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from backends.op_record import Cost, OpRecord, TensorSpec
from backends.scratch import write_whole
from perf.op_lists.record import CountedOp, OpList, RunOps, Workload, record_run

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "generated" / "op_lists"
SOURCES = ("backends", "models", "runtime", "perf/op_lists/record.py")


@lru_cache(maxsize=512)
def run_ops(workload: Workload) -> RunOps:
    """Op lists of a workload, from memory, disk, or a fresh recording."""
    path = DIRECTORY / f"{_digest(workload)}.json"
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: record it
    run = record_run(workload)
    write_whole(path, json.dumps(_to_json(run)))
    return run


def _digest(workload: Workload) -> str:
    facts = asdict(workload) | {"model": _model_facts(workload.model), "sources": source_digest()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _model_facts(model: str | Path) -> str:
    """The name of a known model (its facts are sources), or the text of a directory's config."""
    for name in ("config.json", "params.json"):
        file = Path(model) / name
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return str(model)


@lru_cache(maxsize=1)
def source_digest() -> str:
    """What the forward pass and the emulator are written in."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = ROOT / source
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.suffix in (".py", ".json") and "model_cache" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _to_json(run: RunOps) -> dict[str, Any]:
    """Records once each; lists refer to them by number."""
    numbers: dict[str, int] = {}

    def number(record: OpRecord) -> int:
        return numbers.setdefault(json.dumps(asdict(record)), len(numbers))

    lists = {
        name: {
            "ops": [(number(op.record), op.count) for op in ops.ops],
            "host_elements": ops.host_elements,
        }
        for name, ops in (("decode", run.decode), ("prefill", run.prefill))
    }
    return {
        "records": [json.loads(text) for text in numbers],
        "lists": lists,
        "prefill_users": run.prefill_users,
        "mesh_shape": run.mesh_shape,
        "grid": run.grid,
    }


def _from_json(stored: dict[str, Any]) -> RunOps:
    records = [_record(entry) for entry in stored["records"]]

    def ops(name: str) -> OpList:
        entry = stored["lists"][name]
        counted = tuple(CountedOp(records[i], count) for i, count in entry["ops"])
        return OpList(counted, entry["host_elements"])

    rows, cols = stored["mesh_shape"]
    return RunOps(
        ops("decode"), ops("prefill"), stored["prefill_users"], (rows, cols), tuple(stored["grid"])
    )


def _record(entry: dict[str, Any]) -> OpRecord:
    cost = entry["cost"]
    return OpRecord(
        entry["name"],
        tuple(_tensor(spec) for spec in entry["inputs"]),
        tuple(_tensor(spec) for spec in entry["outputs"]),
        entry["attributes"],
        entry["scope"],
        None if cost is None else Cost(**cost),
    )


def _tensor(entry: dict[str, Any]) -> TensorSpec:
    tuples = {key: entry[key] and tuple(entry[key]) for key in ("shape", "padded_shape", "shard")}
    return TensorSpec(**(entry | tuples))
