"""What every checkpoint answers, and the names and shapes a config calls for.

Matrices are [out, in]. Rows of q and k (weight, bias, and their head norms) are in Meta's pair
order: the two numbers one rotation mixes are neighbours, as TT-NN's rotary op wants them.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from models.checkpoints.vision_names import vision_shapes
from models.config import ModelConfig


class Checkpoint(Protocol):
    """One model's weights; `get` reads one tensor and keeps none."""

    config: ModelConfig

    @property
    def fingerprint(self) -> str:
        """Changes whenever the weights may have changed; cheap, no tensor is read."""
        ...

    def names(self) -> list[str]:
        """Every canonical name, in the order a model is built."""
        ...

    def get(self, name: str) -> torch.Tensor:
        """One tensor by its canonical name, in the dtype it is stored in (or dequantised to)."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


@runtime_checkable
class ReadsRows(Protocol):
    """A checkpoint that can read part of a matrix."""

    def get_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop of a matrix whose rows are as stored (not of q or k)."""
        ...


def get_rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
    """Some rows of a matrix; checkpoints in files read no others."""
    if isinstance(checkpoint, ReadsRows):
        return checkpoint.get_rows(name, start, stop)
    return checkpoint.get(name)[start:stop]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of a model, lm_head included when tied."""
    return _text_shapes(config) | vision_shapes(config)


def _text_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    dim, hidden = config.dim, config.hidden_dim
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (dim,),
        "attention.wq.weight": (config.q_dim, dim),
        "attention.wk.weight": (config.kv_dim, dim),
        "attention.wv.weight": (config.kv_dim, dim),
        "attention.wo.weight": (dim, config.q_dim),
    }
    if config.qkv_bias:
        layer["attention.wq.bias"] = (config.q_dim,)
        layer["attention.wk.bias"] = (config.kv_dim,)
        layer["attention.wv.bias"] = (config.kv_dim,)
    if config.qk_norm:
        layer["attention.q_norm.weight"] = (config.head_dim,)
        layer["attention.k_norm.weight"] = (config.head_dim,)
    layer["ffn_norm.weight"] = (dim,)
    layer["mlp.w1.weight"] = (hidden, dim)
    layer["mlp.w2.weight"] = (dim, hidden)
    layer["mlp.w3.weight"] = (hidden, dim)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (config.vocab_size, dim)}
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["norm.weight"] = (dim,)
    shapes["lm_head.weight"] = (config.vocab_size, dim)
    return shapes


class PlaceholderCheckpoint:
    """Right names and shapes without data; models are built on shapes.py's."""

    is_placeholder = True  # weights.py reserves memory instead of converting

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._shapes = expected_shapes(config)

    @property
    def fingerprint(self) -> str:
        """The config's alone: there are no weights."""
        return f"placeholder-{self.config.digest}"

    def names(self) -> list[str]:
        """Every canonical name."""
        return list(self._shapes)

    def get(self, name: str) -> torch.Tensor:
        """A bfloat16 meta tensor."""
        return torch.empty(self._shapes[name], dtype=torch.bfloat16, device="meta")

    def close(self) -> None:
        """Nothing to let go of."""
