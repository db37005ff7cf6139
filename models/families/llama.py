"""Llama 3.x, SmolLM2, DeepSeek-R1-Distill-Llama, and the text stack of Llama 3.2 Vision."""

from models.families import Family

FAMILY = Family(
    "LlamaForCausalLM",
    "llama",
    gguf_pair_order=True,
    text_stack_of=("MllamaForConditionalGeneration",),
)
