"""Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen: biases on q, k and v."""

from models.families import Family

FAMILY = Family(
    "Qwen2ForCausalLM",
    "qwen2",
    qkv_bias=True,
    sliding_window_switch="use_sliding_window",
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
)
