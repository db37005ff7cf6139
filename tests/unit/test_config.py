"""Model facts: read from any file, found by name, and equal to what HF computes from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.config import RopeScaling
from models.config_readers import config_from_hf, config_from_meta
from models.families import FAMILIES
from models.registry import MODEL_PARAMS, load_config, model_names
from models.rope_tables import rope_frequencies

# Published sizes in billions; the vision models' text stacks are the 8B and 70B.
PARAMETERS = {
    "DeepSeek-R1-Distill-Llama-70B": 70.55,
    "DeepSeek-R1-Distill-Qwen-14B": 14.77,
    "Llama-3.1-70B": 70.55,
    "Llama-3.1-8B": 8.03,
    "Llama-3.2-11B-Vision": 8.03,
    "Llama-3.2-1B": 1.236,
    "Llama-3.2-3B": 3.21,
    "Llama-3.2-90B-Vision": 70.55,
    "Llama-3.3-70B": 70.55,
    "Mistral-7B-Instruct-v0.3": 7.25,
    "Phi-3-mini-128k": 3.82,
    "Phi-3.5-mini": 3.82,
    "phi-4": 14.66,
    "Qwen2.5-72B": 72.71,
    "Qwen2.5-7B": 7.62,
    "Qwen2.5-Coder-32B": 32.76,
    "Qwen3-32B": 32.76,
    "Qwen3-8B": 8.19,
    "QwQ-32B": 32.76,
    "SmolLM2-135M-Instruct": 0.1345,
}
LLAMA_8B = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
}
LLAMA_1B = LLAMA_8B | {
    "dim": 2048,
    "n_layers": 16,
    "ffn_dim_multiplier": 1.5,
    "multiple_of": 256,
}
LLAMA_70B = LLAMA_8B | {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096}


def facts(**changes: object) -> dict[str, object]:
    """A small config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 96,
        "max_position_embeddings": 4096,
        **changes,
    }


def test_every_known_model_has_its_published_size() -> None:
    sizes = {name: load_config(name).num_parameters / 1e9 for name in model_names()}
    assert sizes == pytest.approx(PARAMETERS, rel=2e-3)


def test_every_family_is_among_the_known_models() -> None:
    assert {load_config(name).architecture for name in model_names()} == set(FAMILIES)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("default", "SmolLM2-135M-Instruct"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("Meta-Llama-3.1-8B", "Llama-3.1-8B"),
        ("Llama3.2-11B", "Llama-3.2-11B-Vision"),
        ("meta-llama/Llama-3.2-90B-Vision-Instruct", "Llama-3.2-90B-Vision"),
        ("microsoft/Phi-3-mini-128k-instruct", "Phi-3-mini-128k"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B-Instruct-v0.3"),
        ("QWEN/qwen3-32b", "Qwen3-32B"),
    ],
)
def test_names_match_in_any_common_spelling(spelling: str, name: str) -> None:
    assert load_config(spelling).name == name


def test_an_unknown_name_answers_with_near_names_and_the_list() -> None:
    with pytest.raises(
        ValueError, match=r"did you mean Llama-3.1-8B .*known are default, "
    ) as error:
        load_config("Llama-3.1-9B")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("params", "name"),
    [(LLAMA_8B, "Llama-3.1-8B"), (LLAMA_1B, "Llama-3.2-1B"), (LLAMA_70B, "Llama-3.3-70B")],
)
def test_params_json_means_the_same_model_as_config_json(
    params: dict[str, object], name: str
) -> None:
    # Meta's file does not say whether the embeddings are tied; the checkpoint does.
    hf = replace(load_config(name), tie_word_embeddings=False)
    assert config_from_meta(params, name=name) == hf


def test_old_and_new_spelling_of_rope_in_config_json_agree() -> None:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    numbers["original_max_position_embeddings"] = 8192
    old = facts(rope_theta=5e5, rope_scaling={"type": "llama3", **numbers})
    new = facts(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **numbers})
    assert config_from_hf(old) == config_from_hf(new)
    assert config_from_hf(new).rope_theta == 5e5


def test_a_null_head_dim_is_the_width_divided_by_the_heads() -> None:
    assert config_from_hf(facts(head_dim=None)).head_dim == 16
    assert config_from_hf(facts(head_dim=32)).q_dim == 128


def test_stop_tokens_of_generation_config_are_added(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(facts(eos_token_id=1)))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert config_from_hf(tmp_path).eos_token_ids == (1, 7)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 512}, 512),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, None),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 8192}, None),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 512}, None),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 512,
                "use_sliding_window": True,
                "max_window_layers": 0,
            },
            512,
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 512,
                "use_sliding_window": True,
                "max_window_layers": 2,
            },
            None,
        ),
    ],
)
def test_a_sliding_window_counts_only_where_it_can_clip(
    changes: dict[str, object], window: int | None
) -> None:
    assert config_from_hf(facts(**changes)).sliding_window == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "LlamaForCausalLM, MistralForCausalLM, Phi3"),
        ({"architectures": None}, "no `architectures`"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by awq"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "known are default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "needs factor"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide into 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}},
            "has 1 numbers, head_dim 16 needs 8",
        ),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 512,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            "mix full_attention, sliding_attention",
        ),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config_from_hf(facts(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"architectures": 3'])
def test_a_broken_config_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json"):
        config_from_hf(tmp_path)


YARN = RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=1024)
ROPES = {
    "none": None,
    "linear": RopeScaling(kind="linear", factor=4.0),
    "llama3": load_config("Llama-3.2-1B").rope_scaling,
    "yarn": YARN,
    "yarn-untruncated": replace(YARN, truncate=False, beta_fast=16.0, beta_slow=2.0),
    "yarn-mscale": replace(YARN, mscale=1.0, mscale_all_dim=0.5),
    "yarn-attention": replace(YARN, attention_factor=1.5),
    "longrope": load_config("Phi-3.5-mini").rope_scaling,
}


@pytest.mark.parametrize("length", [256, 100_000])
@pytest.mark.parametrize("kind", ROPES)
def test_rope_frequencies_equal_those_of_transformers(kind: str, length: int) -> None:
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from models.checkpoints.reference import hf_config

    model = load_config("Phi-3.5-mini" if kind == "longrope" else "Llama-3.2-1B")
    model = replace(model, rope_scaling=ROPES[kind])
    ours, ours_factor = rope_frequencies(model, length)
    hf = hf_config(model)
    if kind == "none":
        exponents = torch.arange(0, model.head_dim, 2).float() / model.head_dim
        theirs, their_factor = model.rope_theta**-exponents, 1.0
    else:
        scaling = ROPES[kind]
        assert scaling is not None
        theirs, their_factor = ROPE_INIT_FUNCTIONS[scaling.kind](hf, "cpu", seq_len=length)
    assert ours == pytest.approx(theirs.tolist(), rel=2e-6)
    assert ours_factor == pytest.approx(their_factor)


def test_the_digest_changes_with_the_model_but_not_with_its_name() -> None:
    one = load_config("Llama-3.1-8B")
    assert one.digest == replace(one, name="other", eos_token_ids=(3,)).digest
    assert one.digest != replace(one, rope_theta=2.0).digest
    assert one.digest != one.with_layers(2).digest


def test_only_existing_layers_can_be_kept() -> None:
    with pytest.raises(ValueError, match="has 32 layers"):
        load_config("Llama-3.1-8B").with_layers(33)


def test_model_params_hold_facts_only() -> None:
    for path in MODEL_PARAMS.glob("*/config.json"):
        assert not {"auto_map", "torch_dtype", "_name_or_path"} & set(json.loads(path.read_text()))
