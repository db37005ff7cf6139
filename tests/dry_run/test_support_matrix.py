"""Every supported model runs on every system it is supported on, with real plans and sizes.

Few layers here; all layers behind the `full` marker (make test-full).
"""

from __future__ import annotations

from typing import Any

import pytest

from backends.device_specs import SPECS
from tests.dry_run.conftest import Checks

SMALL, WORMHOLE = ("N150", "N300", "T3K"), ("N150", "N300", "T3K", "TG")
SUPPORTED: dict[str, tuple[str, ...]] = {
    "Llama-3.2-1B": (*WORMHOLE, "P100", "P150"),
    "Llama-3.2-3B": WORMHOLE,
    "Llama-3.1-8B": (*WORMHOLE, "T3K_2x4", "P100", "P150"),
    "Llama-3.1-70B": ("T3K", "TG"),
    "Llama-3.3-70B": ("T3K", "TG"),
    "DeepSeek-R1-Distill-Llama-70B": ("T3K", "TG"),
    "Mistral-7B-Instruct-v0.3": SMALL,
    "Qwen2.5-7B": ("N300", "T3K"),
    "Qwen2.5-Coder-32B": ("T3K",),
    "Qwen2.5-72B": ("T3K",),
    "Qwen3-32B": ("T3K",),
    "Phi-3.5-mini": SMALL,
    "Phi-3-mini-128k": SMALL,
    "SmolLM2-135M-Instruct": (*WORMHOLE, "P150"),
}
PAIRS = [(model, device) for model, devices in SUPPORTED.items() for device in devices]
# 70B models have nowhere to go on two chips, 8B in bfloat16 none on one
TOO_LARGE = [
    {"model": "Llama-3.1-70B", "device": "N150"},
    {"model": "Qwen2.5-72B", "device": "N300"},
    {"model": "Llama-3.1-8B", "device": "N150", "optimizations": "accuracy", "max_seq_len": 131072},
]


def _options(model: str, device: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "device": device, **more}


def _named(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


@pytest.mark.parametrize("check_options", [_options(*pair, layers=2) for pair in PAIRS], ids=_named)
def test_two_layers_pass(checks: Checks, check_options: dict[str, Any]) -> None:
    _passes(checks, check_options)


@pytest.mark.parametrize(
    "check_options",
    [
        _options("Llama-3.2-1B", "N300", layers=1, optimizations="accuracy"),
        _options("Llama-3.1-8B", "T3K", layers=1, ring=True),
        _options("Llama-3.1-8B", "T3K", layers=1, data_parallel=4),
        _options("Llama-3.1-70B", "TG", layers=1, data_parallel=4, optimizations="accuracy"),
        _options("Llama-3.3-70B", "TG", layers=1, ring=True),
    ],
    ids=_named,
)
def test_other_precisions_rings_and_data_groups_pass(
    checks: Checks, check_options: dict[str, Any]
) -> None:
    _passes(checks, check_options)


@pytest.mark.full
@pytest.mark.parametrize("check_options", [_options(*pair) for pair in PAIRS], ids=_named)
def test_all_layers_pass(checks: Checks, check_options: dict[str, Any]) -> None:
    report = _passes(checks, check_options)
    assert report["host_mib"] < 2048
    for run in report["runs"]:
        assert run["dram"]["peak"] < run["dram"]["total"]


@pytest.mark.parametrize("check_options", TOO_LARGE, ids=_named)
def test_a_model_that_cannot_fit_is_refused(checks: Checks, check_options: dict[str, Any]) -> None:
    report = checks.report(check_options)
    assert report["status"] == "refused"
    assert f"does not fit {check_options['device']}" in report["reason"]


def _passes(checks: Checks, options: dict[str, Any]) -> dict[str, Any]:
    report = checks.report(options)
    assert report["status"] == "pass", report.get("failure") or report.get("reason")
    chips = 1
    for side in report["runs"][0]["mesh_shape"]:
        chips *= side
    assert chips * report["data_parallel"] == SPECS[options["device"]].num_chips
    assert [run["batch_size"] for run in report["runs"]] == [1, 32]
    return report
