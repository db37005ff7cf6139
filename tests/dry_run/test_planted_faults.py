"""Wrong decisions planted in a real model are refused with the op, the layer and TT-NN's words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dry_run.conftest import run_json

FAULTS = {
    "unsharded input": ("ttnn.linear", "layers.1.mlp", "a shard spec is missing"),
    "uint32 page table": (
        "ttnn.experimental.paged_fused_update_cache",
        "layers.1.attention",
        "Expect page table to have datatype INT32",
    ),
    "L1 overflow": (
        "ttnn.transformer.scaled_dot_product_attention",
        "layers.1.attention",
        "beyond max L1 size of 1499136 B",
    ),
    "wrong dtype": (
        "ttnn.experimental.rotary_embedding_llama",
        "layers.1.attention",
        "All input tensors must have dtype = bfloat16",
    ),
    "DRAM full": ("ttnn.zeros", "layers.1", "Out of Memory: Not enough space to allocate"),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_json("tests.dry_run.planted", tmp_path_factory.mktemp("planted"))


def test_the_model_passes_without_a_fault(reports: dict[str, Any]) -> None:
    assert reports["none"]["status"] == "pass"


def test_weights_without_data_are_arranged_without_torchs_compiler(
    reports: dict[str, Any],
) -> None:
    """Tensors of device "meta" would load it, for longer than a small model's checks take."""
    assert reports["compiler"] is False


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_with_its_op_its_layer_and_the_reason(
    reports: dict[str, Any], fault: str
) -> None:
    op, scope, words = FAULTS[fault]
    report = reports[fault]
    assert report["status"] == "fail"
    assert (report["failure"]["op"], report["failure"]["scope"]) == (op, scope)
    assert words in report["failure"]["words"]
    assert "\n" not in report["failure"]["words"]
    assert report["failure"]["where"].startswith(("tests/dry_run/planted.py:", "models/"))
