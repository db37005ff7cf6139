"""Llama 3.x, SmolLM2, DeepSeek-R1-Distill-Llama, and the text stack of Llama 3.2 Vision."""

from models.families import Family

FAMILY = Family(
    "LlamaForCausalLM",
    "llama",
    gguf_pair_order=True,
    has_sliding_window=False,
    bias_keys=("attention_bias", "mlp_bias"),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    text_stack_of={
        "MllamaForConditionalGeneration": {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        }
    },
)
