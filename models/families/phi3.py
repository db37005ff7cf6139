"""Phi-3, Phi-3.5-mini and phi-4: fused qkv and gate-up weights, longrope."""

from models.families import Family

FAMILY = Family(
    "Phi3ForCausalLM",
    "phi3",
    fused_qkv=True,
    fused_gate_up=True,
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
)
