"""Phi-3, Phi-3.5-mini and phi-4: fused qkv and gate-up weights, longrope."""

from models.families import Family

FAMILY = Family(
    "Phi3ForCausalLM", "phi3", fused_qkv=True, fused_gate_up=True, norm_eps_default=1e-5
)
