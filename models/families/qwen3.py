"""Qwen3 (dense): an RMS norm on every q and k head, no biases, explicit head_dim."""

from models.families import Family

FAMILY = Family(
    "Qwen3ForCausalLM",
    "qwen3",
    qk_norm=True,
    sliding_window_switch="use_sliding_window",
    bias_keys=("attention_bias",),
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
)
