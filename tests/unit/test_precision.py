"""Precision settings: grammar, presets, decoder files; and that each reaches the op it names."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.op_record import OpRecord
from models.precision import (
    FIDELITY_SETTINGS,
    Fidelity,
    LayerPrecision,
    ModelPrecision,
    OpGroup,
    Precision,
    TensorGroup,
    compared_settings,
    preset_layer,
)
from models.registry import load_config, model_names

# the form in which result tables have always been titled
PUBLISHED = (
    "precision_cfg = {ff1_3: bfp4, ff2: bfp8, wqkv: bfp8, wo: bfp8, kv_cache: bfp8, "
    "activation: mixed}, fidelity_cfg = {li_ff1_3: lofi, li_ff2: hifi2, li_qkv_decode: hifi2, "
    "li_o_decode: hifi2, sdpa_decode: hifi2na, li_qkv_prefill: hifi2, li_o_prefill: hifi2fp16, "
    "sdpa_prefill: hifi4}"
)
CONFIG = replace(load_config("Llama-3.2-1B"), num_layers=2)
WEIGHTS = [group for group in TensorGroup if group is not TensorGroup.ACTIVATION]
FORMATS = [Precision.BFP4, Precision.BFP8, Precision.BF16]

layers = st.builds(
    LayerPrecision,
    st.tuples(*[st.sampled_from(FORMATS)] * len(WEIGHTS), st.sampled_from(Precision)),
    st.tuples(*[st.sampled_from(Fidelity)] * len(OpGroup)),
)


def test_the_published_spelling_is_canonical() -> None:
    settings = compared_settings()
    assert PUBLISHED in settings
    assert len(set(settings)) == 12
    for text in settings:
        assert ModelPrecision.parse(text, CONFIG).canonical() == text


@given(layers)
def test_canonical_text_reads_back(layer: LayerPrecision) -> None:
    assert ModelPrecision.parse(layer.canonical(), CONFIG).layers == (layer, layer)


@given(layers, layers)
def test_a_decoder_file_reads_back(first: LayerPrecision, second: LayerPrecision) -> None:
    base = ModelPrecision.preset("performance", CONFIG)
    wanted = ModelPrecision("wanted", (first, second))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(wanted.decoder_config(base), file)
        file.flush()
        assert ModelPrecision.parse(file.name, CONFIG).layers == wanted.layers


@pytest.mark.parametrize("preset", ["performance", "accuracy"])
def test_half_a_text_keeps_the_rest_of_the_chosen_preset(preset: str) -> None:
    base = preset_layer(preset, CONFIG.name)
    for text, changed in (
        ("precision_cfg = {wo: bfp4}", base.changed({TensorGroup.WO: Precision.BFP4})),
        ("fidelity_cfg={sdpa_decode:hifi4}", base.changed({OpGroup.SDPA_DECODE: Fidelity.HIFI4})),
    ):
        assert ModelPrecision.parse(text, CONFIG, preset=preset).layer(1) == changed


def test_a_decoder_file_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text('{"decoders": {"1": {"precision_cfg": {"FF2": "BF16"}}}}')
    found = ModelPrecision.from_decoder_config(path, CONFIG, preset="accuracy")
    base = preset_layer("accuracy", CONFIG.name)
    assert found.layer(0) == base
    assert found.layer(1) == base.changed({TensorGroup.FF2: Precision.BF16})


def test_presets_follow_the_documented_rules() -> None:
    for name in model_names():
        fast, exact = (preset_layer(p, name) for p in ("performance", "accuracy"))
        large = re.search("[79][02]B", name)
        assert fast.tensor(TensorGroup.FF1_FF3) is (
            Precision.BFP8 if name == "Qwen2.5-7B" else Precision.BFP4
        )
        assert exact.tensor(TensorGroup.FF1_FF3) is (Precision.BFP4 if large else Precision.BFP8)
        plain = large or name.startswith(("Llama-3", "Mistral-7B", "Phi-3", "phi-4"))
        assert exact.tensor(TensorGroup.WQKV) is (Precision.BFP8 if plain else Precision.BF16)


def test_a_models_own_file_changes_its_preset() -> None:
    config = load_config("Llama-3.1-8B")
    found = ModelPrecision.preset("performance", config)
    formats = [layer.tensor(TensorGroup.FF1_FF3) for layer in found.layers]
    assert formats == [Precision.BFP4] * 31 + [Precision.BFP8]
    assert len(ModelPrecision.preset("performance", config.with_layers(3)).layers) == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("fast", "'fast'.*performance"),
        ("precision_cfg = {ff3: bfp8}", "'ff3'.*ff1_3, ff2"),
        ("precision_cfg = {ff2: fp8}", "ff2.*'fp8'.*bfp4, bfp8, bf16"),
        ("precision_cfg = {ff2: mixed}", "ff2 cannot be mixed"),
        ("fidelity_cfg = {li_ff2: hifi3}", "'hifi3'.*lofi, hifi2"),
        ("fidelity = {li_ff2: lofi}", "'fidelity'.*precision_cfg, fidelity_cfg"),
        ("precision_cfg = {ff2 bfp8}", "'ff2 bfp8'.*key: value"),
        ("precision_cfg = {ff2: bfp8, ff2: bfp4}", "ff2 is set twice"),
        ("no/such/file.json", "no/such/file.json"),
    ],
)
def test_a_wrong_text_names_the_key_and_the_choices(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        ModelPrecision.parse(text, CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "cannot read decoder config"),
        ("{}", "has no decoders"),
        ('{"decoders": [1]}', "cannot read decoder config"),
        ('{"decoders": {"2": {}}}', "decoders 0 to 1"),
        ('{"decoders": {"one": {}}}', "'one'"),
        ('{"decoders": {"0": {"precision_cfg": "BFP8"}}}', "precision_cfg, fidelity_cfg"),
        ('{"decoders": {"0": {"precision_cfg": {"FF9": "BFP8"}}}}', "'FF9'.*ff1_3"),
    ],
)
def test_a_wrong_decoder_file_is_refused_in_one_line(
    content: str, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=named) as error:
        ModelPrecision.from_decoder_config(path, CONFIG)
    assert "\n" not in str(error.value)


# --- each setting reaches the op it names, and no other

_Pick = Callable[[OpRecord], Any]
_DTYPES = {Precision.BFP4: "bfloat4_b", Precision.BFP8: "bfloat8_b", Precision.BF16: "bfloat16"}


def _ops(optimizations: str) -> dict[str, list[OpRecord]]:
    """Matmul and attention records of layer 1 of two, by the op group they belong to."""
    from backends.device_specs import SPECS
    from perf.op_lists.record import Workload, record_run

    run = record_run(Workload("Llama-3.2-1B", SPECS["N150"], optimizations=optimizations))
    found: dict[str, list[OpRecord]] = {}
    for phase in ("decode", "prefill"):
        linears: list[OpRecord] = []
        for op in getattr(run, phase).ops:
            record = op.record
            if not record.scope.startswith("layers."):
                continue
            if "dot_product" in record.name:
                found[f"sdpa_{phase}"] = [record]
            elif record.name in ("linear", "matmul"):
                linears.append(record)
        qkv, wo, gate, up, down = linears
        found |= {f"li_qkv_{phase}": [qkv], f"li_o_{phase}": [wo]}
        found.setdefault("li_ff1_3", []).extend([gate, up])
        found.setdefault("li_ff2", []).append(down)
    return found


def _fidelity(record: OpRecord) -> tuple[Any, ...]:
    names = ("math_fidelity", "math_approx_mode", "fp32_dest_acc_en", "packer_l1_acc")
    return tuple(record.attributes[name] for name in names)


@pytest.mark.parametrize("shift", range(len(Fidelity)))
def test_each_fidelity_reaches_its_op_in_every_place(shift: int) -> None:
    settings = list(Fidelity)
    chosen = {g: settings[(i + shift) % len(settings)] for i, g in enumerate(OpGroup)}
    text = ", ".join(f"{group.value}: {chosen[group].value}" for group in OpGroup)
    ops = _ops(f"fidelity_cfg = {{{text}}}")
    for group in OpGroup:
        wanted = FIDELITY_SETTINGS[chosen[group]]
        expected = (
            wanted.math_fidelity, wanted.approx, wanted.fp32_dest_acc, wanted.packer_l1_acc
        )  # fmt: skip
        for record in ops[group.value]:
            assert _fidelity(record) == expected, f"{group.value}: {record}"


@pytest.mark.parametrize("shift", range(len(FORMATS)))
def test_each_format_reaches_its_tensor(shift: int) -> None:
    chosen = {g: FORMATS[(i + shift) % len(FORMATS)] for i, g in enumerate(WEIGHTS)}
    text = ", ".join(f"{group.value}: {chosen[group].value}" for group in WEIGHTS)
    ops = _ops(f"precision_cfg = {{{text}}}")
    places: dict[TensorGroup, list[str]] = {
        TensorGroup.FF1_FF3: ["li_ff1_3"],
        TensorGroup.FF2: ["li_ff2"],
        TensorGroup.WQKV: ["li_qkv_decode", "li_qkv_prefill"],
        TensorGroup.WO: ["li_o_decode", "li_o_prefill"],
        TensorGroup.KV_CACHE: ["sdpa_decode"],
    }
    for group, groups in places.items():
        for record in (record for name in groups for record in ops[name]):
            # operand 1 is the weight, or the keys
            assert record.inputs[1].dtype == _DTYPES[chosen[group]], f"{group.value}: {record}"


@pytest.mark.parametrize("format_", [Precision.BFP8, Precision.BF16])
def test_the_activation_format_reaches_what_matmuls_write(format_: Precision) -> None:
    ops = _ops(f"precision_cfg = {{activation: {format_.value}}}")
    for group in ("li_ff1_3", "li_ff2", "li_o_decode", "li_o_prefill"):
        assert {record.outputs[0].dtype for record in ops[group]} == {_DTYPES[format_]}
