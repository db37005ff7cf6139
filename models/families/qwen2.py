"""Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen: biases on q, k and v."""

from models.families import Family

FAMILY = Family(
    "Qwen2ForCausalLM", "qwen2", qkv_bias=True, sliding_window_switch="use_sliding_window"
)
