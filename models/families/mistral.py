"""Mistral 7B: a Llama whose attention may be limited to a sliding window."""

from models.families import Family

# GGUF files of Mistral models call themselves "llama"; they open as LlamaForCausalLM.
FAMILY = Family(
    "MistralForCausalLM",
    "mistral",
    gguf_pair_order=True,
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
