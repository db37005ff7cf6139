"""Qwen3 (dense): an RMS norm on every q and k head, no biases, explicit head_dim."""

from models.families import Family

FAMILY = Family(
    "Qwen3ForCausalLM", "qwen3", qk_norm=True, sliding_window_switch="use_sliding_window"
)
