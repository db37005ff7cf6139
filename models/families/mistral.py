"""Mistral 7B: a Llama whose attention may be limited to a sliding window."""

from models.families import Family

# GGUF files of Mistral models call themselves "llama"; they open as LlamaForCausalLM.
FAMILY = Family("MistralForCausalLM", "mistral", sliding_window_default=4096, gguf_pair_order=True)
