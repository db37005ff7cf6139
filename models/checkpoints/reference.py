"""The HF transformers model with exactly a checkpoint's weights, to compare our stack with.

Works for every format, because the weights pass through the canonical names and back.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from models.checkpoints.base import Checkpoint
from models.checkpoints.export import export_tensors
from models.checkpoints.names import HF
from models.config import ModelConfig

_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
    "Phi3ForCausalLM": "phi3",
}


def hf_config(config: ModelConfig) -> PretrainedConfig:
    """The transformers config of the same model."""
    facts = _text_facts(config)
    if config.vision is not None:
        from models.checkpoints.vision_reference import vision_hf_config

        return vision_hf_config(config, facts)
    return AutoConfig.for_model(
        _MODEL_TYPES[config.architecture], architectures=[config.architecture], **facts
    )


def _text_facts(config: ModelConfig) -> dict[str, Any]:
    """What every decoder stack's config says."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    extra: dict[str, Any] = {}
    if config.rope_scaling is not None:
        numbers = dataclasses.asdict(config.rope_scaling)
        rope |= {key: value for key, value in numbers.items() if value is not None}
        rope["rope_type"] = rope.pop("kind")
        rope |= {key: list(rope[key]) for key in ("short_factor", "long_factor") if key in rope}
        if rope["rope_type"] != "yarn":
            del rope["truncate"]
        original = config.rope_scaling.original_max_position_embeddings
        if config.rope_scaling.kind == "longrope" and original:
            extra["original_max_position_embeddings"] = original
    window = config.sliding_window
    if config.family.sliding_window_switch and window:
        extra |= {config.family.sliding_window_switch: True, "max_window_layers": 0}
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "sliding_window": window,
        "bos_token_id": config.bos_token_ids[0] if config.bos_token_ids else None,
        "eos_token_id": list(config.eos_token_ids) or None,
        "pad_token_id": None,
        **extra,
    }


def build_reference(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "eager",
) -> PreTrainedModel:
    """A transformers model in eval mode that holds the checkpoint's weights as `dtype`."""
    if checkpoint.config.vision is not None:
        from models.checkpoints.vision_reference import build_vision_reference

        assert attn_implementation == "eager"
        return build_vision_reference(checkpoint, hf_config(checkpoint.config), dtype=dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            hf_config(checkpoint.config), attn_implementation=attn_implementation
        )
    model.to_empty(device="cpu")
    # Frequencies are no weights: meta construction lost them, so they are computed again.
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config)
    model.to(dtype)
    model.model.rotary_emb.float()
    targets = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in export_tensors(checkpoint, HF, half_order=True):
            targets.pop(name).copy_(tensor)
    if checkpoint.config.tie_word_embeddings:
        model.tie_weights()
        targets.pop("lm_head.weight", None)
    assert not targets, f"no weights for {', '.join(targets)}"
    return model.eval()


def hf_reference(
    path: str | Path, *, dtype: torch.dtype = torch.float32, cache_hf: bool = False
) -> PreTrainedModel:
    """The reference of a checkpoint by path or name; `cache_hf` keeps it in memory for next time.

    Caching costs the whole model's size (a 70B in bfloat16: 140 GB), so it is off unless asked for.
    """
    return _cached(str(path), dtype) if cache_hf else _load(str(path), dtype)


def _load(path: str, dtype: torch.dtype) -> PreTrainedModel:
    from models.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(path)
    try:
        return build_reference(checkpoint, dtype=dtype)
    finally:
        checkpoint.close()


_cached = functools.lru_cache(maxsize=1)(_load)
