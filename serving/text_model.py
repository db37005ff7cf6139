"""What vLLM has to see of a model class before a worker loads ours: that it writes text.

Never built and never run; the model that runs is models/transformer.py.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class TextModel(nn.Module):
    """Has the methods by which vLLM tells a text model."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        raise NotImplementedError("served models run in serving/worker.py")

    def embed_input_ids(self, input_ids: Any) -> Any:
        raise NotImplementedError

    def forward(self, input_ids: Any, positions: Any) -> Any:
        raise NotImplementedError

    def compute_logits(self, hidden_states: Any) -> Any:
        raise NotImplementedError
