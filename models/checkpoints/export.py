"""A checkpoint's tensors under another format's names: for HF reference models and writers.

The reverse of reading: q/k rows go back to the format's order and fused tensors are stacked again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from models.checkpoints.base import Checkpoint
from models.checkpoints.names import (
    FUSED,
    HF,
    NameScheme,
    canonical_to_stored,
    number_in_file,
    rotary_heads,
    to_half_order,
)
from models.config import ModelConfig


def export_tensors(
    checkpoint: Checkpoint, scheme: NameScheme, *, half_order: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """(stored name, tensor), one at a time; a tied lm_head is left out."""
    config = checkpoint.config
    family = config.family
    fused_here = {"attention.wqkv": family.fused_qkv, "mlp.w13": family.fused_gate_up}
    whole_of = {
        part: whole
        for whole, parts in FUSED.items()
        if fused_here[whole] and f"layers.{{i}}.{whole}" in scheme.tensors
        for part in parts
    }

    def tensor_of(name: str) -> torch.Tensor:
        tensor = checkpoint.get(name)
        heads = rotary_heads(config, name) if half_order else 0
        return to_half_order(tensor, heads) if heads else tensor

    numbers = _numbers(config) if scheme is HF and config.vision else None
    joined = canonical_to_stored(scheme, "embed.weight")
    for name in checkpoint.names():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        match = re.match(r"(layers\.\d+\.)(.*)\.(weight|bias)$", name)
        whole = whole_of.get(match[2]) if match else None
        if match is None or whole is None:
            stored = canonical_to_stored(scheme, name, number_in_file(name, config, numbers))
            if name == "image_embed.weight" and stored == joined:
                continue
            tensor = tensor_of(name)
            if name == "embed.weight" and numbers is not None:
                tensor = torch.cat([tensor, checkpoint.get("image_embed.weight")])
            yield stored, tensor.reshape(scheme.stored_shape(name, config, tuple(tensor.shape)))
        elif match[2] == FUSED[whole][0]:  # the first part stands for the whole
            parts = [tensor_of(f"{match[1]}{part}.{match[3]}") for part in FUSED[whole]]
            yield canonical_to_stored(scheme, f"{match[1]}{whole}.{match[3]}"), torch.cat(parts)


def _numbers(config: ModelConfig) -> list[int]:
    """HF's numbers of the text layers of a vision model: it counts both kinds together."""
    assert config.vision is not None
    before = config.vision.cross_before
    return [i + sum(other <= i for other in before) for i in range(config.num_layers)]
