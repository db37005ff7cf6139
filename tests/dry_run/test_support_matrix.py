"""Every supported model runs on every system it is supported on, with real plans and sizes.

Few layers here, and of models and systems whose sizes another pair has one pair; all pairs, all
layers, and whole contexts, behind the `full` marker (make test-full).
"""

from __future__ import annotations

from typing import Any

import pytest

from backends.device_specs import SPECS
from models.footprint import published_chunks
from models.precision import TensorGroup, preset_layer
from models.registry import canonical_name, load_config
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
    "Qwen2.5-7B": ("N300", "T3K", "TG"),
    "Qwen2.5-Coder-32B": ("T3K",),
    "Qwen2.5-72B": ("T3K", "TG"),
    "Qwen3-32B": ("T3K",),
    "Phi-3.5-mini": SMALL,
    "Phi-3-mini-128k": SMALL,
    "SmolLM2-135M-Instruct": (*WORMHOLE, "P150"),
}
PAIRS = [(model, device) for model, devices in SUPPORTED.items() for device in devices]
# Pairs that add least to those that always run: the other 70B models have the sizes and settings of
# Llama-3.1's, Phi-3-mini differs from Phi-3.5 in one setting, small Llamas meet most systems once.
SAME = {
    ("Llama-3.2-1B", "N300"), ("Llama-3.2-1B", "T3K"), ("Llama-3.2-1B", "TG"),
    ("Llama-3.2-1B", "P150"), ("Llama-3.2-3B", "N150"), ("Llama-3.2-3B", "N300"),
    ("Llama-3.2-3B", "TG"), ("Llama-3.1-8B", "N300"), ("Llama-3.1-8B", "P100"),
    ("Llama-3.3-70B", "T3K"), ("Llama-3.3-70B", "TG"),
    ("DeepSeek-R1-Distill-Llama-70B", "T3K"), ("DeepSeek-R1-Distill-Llama-70B", "TG"),
    ("Mistral-7B-Instruct-v0.3", "N300"), ("Phi-3-mini-128k", "N300"),
    ("Phi-3-mini-128k", "T3K"), ("SmolLM2-135M-Instruct", "T3K"), ("SmolLM2-135M-Instruct", "P150"),
}  # fmt: skip
# 70B models have nowhere to go on two chips, 8B in bfloat16 none on one
TOO_LARGE = [
    {"model": "Llama-3.1-70B", "device": "N150"},
    {"model": "Qwen2.5-72B", "device": "N300"},
    {"model": "Llama-3.1-8B", "device": "N150", "optimizations": "accuracy", "max_seq_len": 131072},
]


# the longest context that one user has on these; elsewhere it is the model's own, 128K at most
SHORTER = {("Llama-3.1-8B", "N150"): 64, ("Llama-3.2-11B-Vision", "N150"): 64}
SHORTER |= {(model, "N300"): 64 for model in ("Phi-3.5-mini", "Phi-3-mini-128k")}
SHORTER |= {(model, "N150"): 32 for model in ("Phi-3.5-mini", "Phi-3-mini-128k")}
# 32 key/value heads: a page for every position of 128K would take twice the DRAM there is
TOO_LONG = [
    {"model": "Phi-3.5-mini", "device": device, "max_seq_len": 131072} for device in SMALL[:2]
]


def _options(model: str, device: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "device": device, **more}


def _named(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


def _full(case: dict[str, Any]) -> Any:
    return pytest.param(case, marks=pytest.mark.full)


WIDE = "precision_cfg = {activation: bf16}"  # parts of sums would take two thirds
ALL_WIDE = f"precision_cfg = {{{', '.join(f'{group.value}: bf16' for group in TensorGroup)}}}"
LARGE = ("Llama-3.1-70B", "Qwen2.5-72B")
TWO_LAYERS = [
    _full(case) if pair in SAME else case
    for pair, case in ((pair, _options(*pair, layers=2)) for pair in PAIRS)
]


def test_every_system_and_every_size_of_model_is_among_the_pairs_that_always_run() -> None:
    always = set(PAIRS) - SAME
    assert set(PAIRS) > SAME
    assert {device for _, device in always} == {device for _, device in PAIRS}

    def size(model: str) -> tuple[Any, ...]:
        c = load_config(model)
        heads = (c.num_heads, c.num_kv_heads, c.head_dim, c.qkv_bias, c.qk_norm)
        return (c.dim, c.hidden_dim, c.vocab_size, *heads, preset_layer("performance", model))

    kept = {size(model) for model, _ in always}
    assert not [model for model in SUPPORTED if size(model) not in kept]


@pytest.mark.parametrize("check_options", TWO_LAYERS, ids=_named)
def test_two_layers_pass(checks: Checks, check_options: dict[str, Any]) -> None:
    _passes(checks, check_options)


@pytest.mark.parametrize(
    "check_options",
    [
        _options("Llama-3.2-1B", "N300", layers=1, optimizations="accuracy"),
        _options("Llama-3.2-1B", "N150", layers=1, block_size=64),
        _options("Llama-3.1-8B", "T3K", layers=1, ring=False),
        _options("Llama-3.1-8B", "T3K", layers=1, data_parallel=4),
        _options("Llama-3.1-70B", "TG", layers=1, data_parallel=4, optimizations="accuracy"),
        _options("Llama-3.3-70B", "TG", layers=1, ring=False),
        _options("Qwen3-32B", "TG", layers=1, optimizations="accuracy"),
        _options("Llama-3.3-70B", "P150x8", layers=1),  # parts of sums take a third of L1
        *(_options(model, "P150x8", layers=1, optimizations=WIDE) for model in LARGE),
        _full(_options("Qwen2.5-72B", "P150x4", layers=1, optimizations=WIDE)),
        _full(_options("Qwen2.5-7B", "P150x8", layers=1, optimizations=WIDE)),
        _full(_options("Llama-3.1-70B", "P150x2", layers=1)),  # rows of norms are as long
        # output projections in bfloat16, whose sums in float32 and weights share L1
        _options("Llama-3.3-70B", "P150x8", layers=2, optimizations=ALL_WIDE),
        _options("Qwen2.5-7B", "P300", layers=2),
        *(_full(_options("Qwen2.5-7B", device, layers=2)) for device in ("P150x2", "P100")),
    ],
    ids=_named,
)
def test_other_precisions_pages_rings_and_data_groups_pass(
    checks: Checks, check_options: dict[str, Any]
) -> None:
    _passes(checks, check_options)


@pytest.mark.parametrize(
    "check_options", [_options("Llama-3.1-8B", "T3K", layers=1, line_reduce=True)], ids=_named
)
def test_sums_over_lines_of_a_ring_take_no_more_than_was_estimated(
    checks: Checks, check_options: dict[str, Any]
) -> None:
    report = _passes(checks, check_options)
    for run in report["runs"]:
        assert run["estimate"]["rest"] >= run["dram"]["rest"]


_SHORT = {"layers": 1, "batch_sizes": [1]}


@pytest.mark.parametrize(
    "check_options",
    [
        # rooms of gathers, and copies of sums that are scattered after their products
        _options("Llama-3.1-70B", "P150x8", max_seq_len=1024, **_SHORT),
        _options("Llama-3.1-70B", "P150x8", max_seq_len=1024, optimizations=WIDE, **_SHORT),
        # rooms of one scatter, and copies of the other sum
        _options("Llama-3.1-70B", "T3K", max_seq_len=2048, **_SHORT),
        _options("Llama-3.1-70B", "T3K", max_seq_len=1024, **_SHORT),
    ],
    ids=_named,
)
def test_short_prefills_on_rings_take_no_more_than_was_estimated(
    checks: Checks, check_options: dict[str, Any]
) -> None:
    report = checks.report(check_options)
    assert report["status"] == "pass", report.get("failure") or report.get("reason")
    (run,) = report["runs"]
    slack = 2 * 32 * 128256  # logits that a chip might gather
    assert 0 <= run["estimate"]["rest"] - run["dram"]["rest"] < slack


_LOOK = {"layers": 4, "images": 1, "batch_sizes": [4], "max_seq_len": 1024}
LOOKING = [_options("Llama-3.2-90B-Vision", "T3K", **_LOOK)]
LOOKING += [
    _full(_options("Llama-3.2-11B-Vision", device, **_LOOK)) for device in ("N300", "T3K", "P150")
]
# where most of the memory is a mask of which image a token sees
_SEVERAL = _LOOK | {"batch_sizes": [1], "max_seq_len": 8192}
LOOKING += [
    _full(_options("Llama-3.2-11B-Vision", device, **_SEVERAL | {"images": images}))
    for device, images in (("N300", 2), ("T3K", 8))
]


@pytest.mark.parametrize("check_options", LOOKING, ids=_named)
def test_a_layer_that_looks_at_images_and_the_whole_tower_pass(
    checks: Checks, check_options: dict[str, Any]
) -> None:
    report = checks.report(check_options)
    assert report["status"] == "pass", report.get("failure") or report.get("reason")
    (run,) = report["runs"]
    names = [phase["name"] for phase in run["phases"]]
    all_tiles = "+".join(["4"] * check_options["images"])
    assert {f"prefill 128, {all_tiles} tiles", "decode with images"} <= set(names)
    _agrees_with_its_estimate(run)
    assert run["estimate"]["rest"] >= run["dram"]["rest"]


@pytest.mark.full
@pytest.mark.parametrize(
    "check_options",
    [
        _options(model, device, images=1, batch_sizes=[users], max_seq_len=context)
        for model, device, users, context in (
            ("Llama-3.2-11B-Vision", "N300", 1, 8192),
            ("Llama-3.2-11B-Vision", "N300", 16, 1024),
            ("Llama-3.2-11B-Vision", "N300", 32, 1024),
            ("Llama-3.2-11B-Vision", "T3K", 1, 131072),
            ("Llama-3.2-11B-Vision", "T3K", 16, 1024),
            ("Llama-3.2-11B-Vision", "T3K", 32, 1024),
            ("Llama-3.2-11B-Vision", "P150", 32, 1024),
            ("Llama-3.2-90B-Vision", "T3K", 1, 2048),
            ("Llama-3.2-90B-Vision", "T3K", 4, 2048),
            ("Llama-3.2-90B-Vision", "T3K", 32, 1024),
        )
    ],
    ids=_named,
)
def test_vision_models_pass_whole(checks: Checks, check_options: dict[str, Any]) -> None:
    report = checks.report(check_options)
    assert report["status"] == "pass", report.get("failure") or report.get("reason")
    (run,) = report["runs"]
    assert run["estimate"]["rest"] >= run["dram"]["rest"]


@pytest.mark.full
@pytest.mark.parametrize("check_options", [_options(*pair) for pair in PAIRS], ids=_named)
def test_all_layers_pass(checks: Checks, check_options: dict[str, Any]) -> None:
    report = _passes(checks, check_options)
    assert report["host_mib"] < 2048
    for run in report["runs"]:
        assert run["dram"]["peak"] < run["dram"]["total"]


def _whole_context(model: str, device: str, **more: Any) -> dict[str, Any]:
    """One user with the longest context the pair is meant for."""
    longest = SHORTER.get((model, device), 128) * 1024
    context = min(longest, load_config(model).max_position_embeddings)
    return _options(model, device, max_seq_len=context, batch_sizes=[1], **more)


FEW_LAYERS = [
    _whole_context(*pair, layers=2)
    for pair in (("Llama-3.1-8B", "N300"), ("Llama-3.3-70B", "T3K"), ("Qwen2.5-72B", "T3K"))
]
ALL_LAYERS = [
    _whole_context(*pair)
    for pair in (*PAIRS, *(("Llama-3.2-11B-Vision", device) for device in SMALL))
]


@pytest.mark.parametrize(
    "check_options",
    [*FEW_LAYERS, *map(_full, ALL_LAYERS)],
    ids=_named,
)
def test_a_prompt_of_the_whole_context_passes_with_its_chunk_and_tells_its_pages(
    checks: Checks, check_options: dict[str, Any]
) -> None:
    report = checks.report(check_options)
    assert report["status"] == "pass", report.get("failure") or report.get("reason")
    (run,) = report["runs"]
    context, chunk = check_options["max_seq_len"], run["max_prefill_chunk"]
    model, device = check_options["model"], check_options["device"]
    published = published_chunks().get(canonical_name(model) or model, {}).get(device)
    assert chunk >= (min(published * 1024, context) if published else 2048)
    assert run["num_blocks"] * run["block_size"] >= context == run["max_seq_len"]
    assert run["fits"]["cache_tokens"] >= context
    names = [phase["name"] for phase in run["phases"]]  # whole, in chunks or the last of them
    assert any(name.startswith(f"prefill {context - 1}") for name in names)
    _agrees_with_its_estimate(run)


@pytest.mark.parametrize("check_options", [*TOO_LARGE, *TOO_LONG], ids=_named)
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
    for run in report["runs"]:
        _agrees_with_its_estimate(run)
    return report


def _agrees_with_its_estimate(run: dict[str, Any]) -> None:
    """What is refused or chunked before loading follows from sizes that TT-NN then confirms."""
    dram, estimate = run["dram"], run["estimate"]
    assert estimate["cache"] == dram["cache"]
    assert estimate["weights"] == pytest.approx(dram["weights"], rel=0.03)
    assert 0.95 * dram["rest"] < estimate["rest"] < 1.2 * dram["rest"]
