"""A config.json that leaves keys out, or says null, means to us what it means to transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from models.checkpoints.reference import _MODEL_TYPES
from models.config import NUMBERS, SIZES
from models.config_readers import config_from_hf
from models.families import FAMILIES

FACTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "intermediate_size": 128,
    "vocab_size": 200000,
}
# keys a file may lack, each with values that HF accepts
OPTIONAL: dict[str, list[Any]] = {
    "num_key_value_heads": [64, 8, None],
    "head_dim": [32, 128],
    "max_position_embeddings": [8192, 100_000],
    "rms_norm_eps": [1e-5, 1e-6],
    "rope_theta": [10000.0, 5e5],
    "tie_word_embeddings": [True, False],
    "use_sliding_window": [True, False],
    "sliding_window": [256, None],
    "max_window_layers": [0, 40, 99],
    "bos_token_id": [3, None],
    "eos_token_id": [5, [7, 8], None],
    "hidden_act": ["silu"],
}


def ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def hf_window(hf: Any, architecture: str) -> int | None:
    """The window that HF's attention really applies."""
    if architecture == "LlamaForCausalLM":
        return None
    kinds = set(getattr(hf, "layer_types", None) or ["sliding_attention"])
    if hf.sliding_window is None or kinds == {"full_attention"}:
        return None
    return hf.sliding_window if hf.sliding_window < hf.max_position_embeddings else None


def assert_as_hf(content: dict[str, Any], architecture: str) -> None:
    try:
        hf = AutoConfig.for_model(_MODEL_TYPES[architecture], **content)
    except StrictDataclassError:  # HF takes null only for some keys: nothing to compare with
        return
    mixes = len(set(getattr(hf, "layer_types", None) or [])) > 1
    if mixes and hf_window(hf, architecture):
        with pytest.raises(ValueError, match="mix"):
            config_from_hf({"architectures": [architecture], **content})
        return
    ours = config_from_hf({"architectures": [architecture], **content})
    derived = hf.hidden_size // hf.num_attention_heads
    assert {
        "num_kv_heads": ours.num_kv_heads,
        "head_dim": ours.head_dim,
        "max_position_embeddings": ours.max_position_embeddings,
        "norm_eps": ours.norm_eps,
        "rope_theta": ours.rope_theta,
        "tie_word_embeddings": ours.tie_word_embeddings,
        "sliding_window": ours.sliding_window,
        "bos_token_ids": ours.bos_token_ids,
        "eos_token_ids": ours.eos_token_ids,
    } == {
        "num_kv_heads": hf.num_key_value_heads,
        "head_dim": getattr(hf, "head_dim", None) or derived,
        "max_position_embeddings": hf.max_position_embeddings,
        "norm_eps": hf.rms_norm_eps,
        "rope_theta": hf.rope_parameters["rope_theta"],
        "tie_word_embeddings": hf.tie_word_embeddings,
        "sliding_window": hf_window(hf, architecture),
        "bos_token_ids": ids(hf.bos_token_id),
        "eos_token_ids": ids(hf.eos_token_id),
    }


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_absent_key_takes_the_default_of_hfs_class(architecture: str) -> None:
    assert_as_hf(FACTS, architecture)


@settings(max_examples=60, deadline=None)
@given(
    architecture=st.sampled_from(sorted(FAMILIES)),
    content=st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(values) for key, values in OPTIONAL.items()}
    ),
)
def test_any_choice_of_keys_means_what_hf_takes_it_for(
    architecture: str, content: dict[str, Any]
) -> None:
    assert_as_hf(FACTS | content, architecture)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.one_of(st.integers(-3, 10**6), st.text(max_size=3), st.floats()), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
ROPE = st.dictionaries(
    st.sampled_from(
        ["type", "rope_type", "factor", "short_factor", "long_factor", "low_freq_factor"]
        + ["high_freq_factor", "original_max_position_embeddings", "rope_theta", "truncate"]
    ),
    st.one_of(JUNK, st.sampled_from(["linear", "llama3", "yarn", "longrope", "default"])),
)


@settings(max_examples=300, deadline=None)
@given(
    architecture=st.one_of(st.sampled_from(sorted(FAMILIES)), JUNK),
    changes=st.dictionaries(
        st.sampled_from(
            [*FACTS, *OPTIONAL, "layer_types", "quantization_config", "text_config"]
            + ["cross_attention_layers", "attention_bias", "partial_rotary_factor"]
        ),
        JUNK,
        max_size=3,
    ),
    rope=st.one_of(JUNK, ROPE),
)
def test_any_junk_in_a_config_is_one_line_or_a_sane_config(
    architecture: Any, changes: dict[str, Any], rope: Any
) -> None:
    content = FACTS | changes | {"architectures": [architecture], "rope_scaling": rope}
    try:
        config = config_from_hf(content)
    except ValueError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return
    for name, (low, high) in (SIZES | NUMBERS).items():
        assert low <= getattr(config, name) <= high
    assert all(0 <= token < config.vocab_size for token in config.eos_token_ids)
    assert math.isfinite(config.attention_scale)
