"""The HF transformers vision model with exactly a checkpoint's weights, put right where it errs.

transformers zeroes only the feed-forward output of tokens that may see no image, not what their
cross-attention gives; Meta's code zeroes both, and so does the hook here. reference.py has texts.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

from models.checkpoints.base import Checkpoint
from models.checkpoints.export import export_tensors
from models.checkpoints.names import HF
from models.config import ModelConfig

# names that save_pretrained writes -> names of the module's parameters
_MODULES = {
    "model.": "model.language_model.",
    "vision_model.": "model.vision_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def vision_hf_config(config: ModelConfig, text: dict[str, Any]) -> MllamaConfig:
    """The transformers config of a vision model; `text` are the text stack's facts."""
    v = config.vision
    assert v is not None
    text = text | {
        "num_hidden_layers": config.num_layers + len(v.cross_before),
        "cross_attention_layers": [before + c for c, before in enumerate(v.cross_before)],
    }
    tower = {
        "hidden_size": v.dim,
        "attention_heads": v.num_heads,
        "intermediate_size": v.hidden_dim,
        "num_hidden_layers": v.num_layers,
        "num_global_layers": v.num_global_layers,
        "intermediate_layers_indices": list(v.intermediate_layers),
        "vision_output_dim": v.output_dim,
        "image_size": v.image_size,
        "patch_size": v.patch_size,
        "max_num_tiles": v.max_tiles,
        "supported_aspect_ratios": [list(ratio) for ratio in v.ratios],
        "norm_eps": v.norm_eps,
    }
    return MllamaConfig(
        text_config=text,
        vision_config=tower,
        image_token_index=v.image_token,
        architectures=["MllamaForConditionalGeneration"],
    )


def build_vision_reference(
    checkpoint: Checkpoint, hf: Any, *, dtype: torch.dtype = torch.float32
) -> MllamaForConditionalGeneration:
    """A transformers model in eval mode; call it with `cross_attention_mask`, always."""
    # sdpa without a mask would make attention to images causal
    hf._attn_implementation = "eager"
    model: Any = MllamaForConditionalGeneration(hf).eval()
    model.to(dtype)
    model.model.language_model.rotary_emb.float()
    targets = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in export_tensors(checkpoint, HF, half_order=True):
            prefix = next((p for p in _MODULES if name.startswith(p)), "")
            target = targets.pop(_MODULES.get(prefix, "") + name[len(prefix) :])
            target.copy_(tensor)
    assert not targets, f"no weights for {', '.join(targets)}"
    for layer in model.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            _mask_rows(layer)
    return model


def _mask_rows(layer: torch.nn.Module) -> None:
    """Zero what cross-attention gives to tokens that may see no image."""
    rows: list[torch.Tensor | None] = [None]

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows[0] = kwargs.get("full_text_row_masked_out_mask")

    def mask(module: Any, args: Any, output: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        seen = rows[0]
        return output if seen is None else (output[0] * seen[:, 0], output[1])

    layer.register_forward_pre_hook(note, with_kwargs=True)
    layer.cross_attn.register_forward_hook(mask)  # type: ignore[union-attr, operator]
