"""The tiny vision model beside Hugging Face's: the same images, prompts, states and logits."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from backends.emulator.api.types import DataType
from backends.emulator.numerics.formats import to_format
from models.checkpoints.reference import build_reference
from models.precision import ModelPrecision, Precision, TensorGroup
from runtime.images import Image, load_image
from tests.model.helpers import random_prompt
from tests.tiny_models import TinyCheckpoint, tiny_config

CHECKPOINT = TinyCheckpoint(tiny_config("mllama"))
CONFIG = CHECKPOINT.config
VISION: Any = CONFIG.vision
IMAGE = VISION.image_token
SIZES = {"1x1": (60, 60), "1x2": (100, 50), "2x1": (50, 100)}  # rows x columns of tiles: pixels


@functools.cache
def image(layout: str = "1x2", seed: int = 1) -> Image:
    """An image that is cut into this layout of tiles."""
    found = load_image({"random": list(SIZES[layout]), "seed": seed}, VISION)
    rows, columns = map(int, layout.split("x"))
    assert (found.layout, found.tiles) == (VISION.ratio_id(rows, columns), rows * columns)
    return found


def prompt_with(length: int, *places: int, seed: int = 0) -> list[int]:
    """Random tokens with image tokens at these places."""
    tokens = random_prompt(CONFIG.vocab_size, length, seed)
    for place in places:
        tokens[place] = IMAGE
    return tokens


@functools.cache
def reference(checkpoint: Any = CHECKPOINT) -> Any:
    """Hugging Face's model in float32, its row masks put right."""
    return build_reference(checkpoint)


class Stored:
    """The tiny model, every matrix rounded as a preset stores it, gates folded in and out again.

    The conversion is the host's, which tests/ops/test_formats.py holds to the wheel's bit for bit:
    16 outputs of one input share an exponent. A run that differs from this differs by our doing.
    """

    def __init__(self, preset: str) -> None:
        self.config, self.fingerprint = CONFIG, f"stored-{preset}"
        self.names, self.close = CHECKPOINT.names, CHECKPOINT.close
        (self.layer,) = set(ModelPrecision.parse(preset, CONFIG).layers)

    def get(self, name: str) -> torch.Tensor:
        tensor = CHECKPOINT.get(name)
        precision = self._precision(name)
        if precision not in _BLOCKS:
            return tensor
        owner, _, part = name.rpartition(".mlp." if ".mlp." in name else ".attention.")
        gate = f"{owner}.{'mlp' if '.mlp.' in name else 'attention'}_gate"
        gated = part in ("w2.weight", "fc2.weight", "wo.weight") and gate in self.names()
        scale = CHECKPOINT.get(gate).float().tanh() if gated else 1.0
        columns = (tensor.flatten(1).float() * scale).T.contiguous()  # [in, out], as it is stored
        return (to_format(columns, _BLOCKS[precision]).float().T / scale).reshape(tensor.shape)

    def _precision(self, name: str) -> Precision:
        """Attention's for all of the tower; the text's own groups elsewhere."""
        if name == "lm_head.weight":
            return Precision.BFP8
        if name.startswith(("vision.", "projector.")):
            looked = name.endswith((*_ATTENTION, "wo.weight", "fc1.weight", "fc2.weight"))
            looked |= name in ("vision.patches.weight", "projector.weight")
            return self.layer.tensor(TensorGroup.WQKV) if looked else Precision.BF16
        for endings, group in _GROUPS.items():
            if name.endswith(endings):
                return self.layer.tensor(group)
        return Precision.BF16


_ATTENTION = ("wq.weight", "wk.weight", "wv.weight")
_GROUPS = {
    _ATTENTION: TensorGroup.WQKV,
    "wo.weight": TensorGroup.WO,
    ("w1.weight", "w3.weight"): TensorGroup.FF1_FF3,
    "w2.weight": TensorGroup.FF2,
}
_BLOCKS = {Precision.BFP8: DataType.BFLOAT8_B, Precision.BFP4: DataType.BFLOAT4_B}


def hf_inputs(tokens: Sequence[int], images: Sequence[Image]) -> dict[str, torch.Tensor]:
    """What Hugging Face's processor would make of a prompt and its images."""
    from transformers.models.mllama import processing_mllama as hf

    most = VISION.max_tiles
    seen = hf.convert_sparse_cross_attention_mask_to_dense(
        [hf.get_cross_attention_token_mask(list(tokens), IMAGE)],
        [[image.tiles for image in images]],
        most,
        len(tokens),
    )
    there = [[1] * image.tiles + [0] * (most - image.tiles) for image in images]
    return {
        "input_ids": torch.tensor([list(tokens)]),
        "pixel_values": torch.stack([image.pixels for image in images])[None],
        "aspect_ratio_ids": torch.tensor([[image.layout for image in images]]),
        "aspect_ratio_mask": torch.tensor([there]),
        "cross_attention_mask": torch.tensor(seen),
    }


def hf_vision_logits(
    tokens: Sequence[int], images: Sequence[Image], last: int, checkpoint: Any = CHECKPOINT
) -> torch.Tensor:
    """The reference's logits of the `last` positions."""
    with torch.inference_mode():
        out = reference(checkpoint)(
            **hf_inputs(tokens, images), logits_to_keep=last, use_cache=False
        )
    return out.logits[0].float()


@contextmanager
def noted(kind: type, method: str) -> Iterator[dict[str, torch.Tensor]]:
    """What each layer of a kind gave, by its name: chip 0's values."""
    found: dict[str, torch.Tensor] = {}
    original = getattr(kind, method)

    def noting(layer: Any, *arguments: Any, **named: Any) -> Any:
        out = original(layer, *arguments, **named)
        data = out.data  # [mesh rows, mesh columns, 1, 1, rows, width of a chip]
        found[layer.name] = torch.cat(list(data[0]), dim=-1).float()[0, 0].clone()
        return out

    setattr(kind, method, noting)
    try:
        yield found
    finally:
        setattr(kind, method, original)
