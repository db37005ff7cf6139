"""The emulator does op for op what TT-NN does: the same calls, every result placed alike.

Inputs are results of other ops, so outputs are what is compared.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.dry_run.conftest import run_json

# Each family, mesh shape and precision preset at least once; batches that fold, pad or fill a tile.
CASES: list[list[dict[str, Any]]] = [
    [
        {"model": "Llama-3.1-8B", "device": "N150", "batch": 1},
        {"model": "Mistral-7B-Instruct-v0.3", "device": "N150", "batch": 32},
    ],
    [
        {"model": "Qwen2.5-7B", "device": "N300", "batch": 32},
        {"model": "Phi-3.5-mini", "device": "N300", "batch": 4},
    ],
    [
        {"model": "Llama-3.2-11B-Vision", "device": "N300", "batch": 4, "images": 2},
    ],
    [
        {"model": "Qwen3-32B", "device": "T3K", "batch": 32},
        {"model": "Llama-3.1-8B", "device": "T3K", "batch": 8, "ring": True},
    ],
    [{"model": "SmolLM2-135M-Instruct", "device": "T3K_2x4", "batch": 2}],
    [
        {"model": "Llama-3.3-70B", "device": "TG", "batch": 32},
        {"model": "Llama-3.2-1B", "device": "TG", "batch": 1, "optimizations": "accuracy"},
    ],
    [{"model": "Llama-3.1-8B", "device": "P150", "batch": 32}],
]


@pytest.mark.parametrize(
    "cases", CASES, ids=lambda cases: f"{cases[0]['device']} {cases[0]['model']}"
)
def test_every_op_and_the_placement_of_its_results_agree_with_the_wheel(
    cases: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    backends = ("dry-run", "emulator")
    folders = [tmp_path_factory.mktemp(name) for name in backends]  # pytest makes one at a time

    def lists(backend: str, folder: Path) -> Any:
        return run_json("tests.dry_run.oplist", folder, backend, json.dumps(cases))

    with ThreadPoolExecutor(2) as pool:
        wheel, ours = pool.map(lists, backends, folders)
    for case, theirs, found in zip(cases, wheel, ours, strict=True):
        assert list(theirs) == list(found)
        for path, ops in theirs.items():
            where = f"{case}, {path}"
            assert [_call(op) for op in found[path]] == [_call(op) for op in ops], where
            for op, own in zip(ops, found[path], strict=True):
                assert own["outputs"] == op["outputs"], f"{where}, {op['op']} in {op['scope']}"


def _call(op: dict[str, Any]) -> tuple[str, str]:
    return op["scope"], op["op"]
