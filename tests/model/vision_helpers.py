"""The tiny vision model beside Hugging Face's: the same images, prompts, states and logits."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from models.checkpoints.reference import build_reference
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


class Coarse(TinyCheckpoint):
    """The same weights, those of gates and ups rounded to what 4 bits hold exactly.

    Steps of one power of two, 7 at most: whatever 16 numbers share an exponent. So the precision
    that is chosen for these weights costs nothing, and what a run still differs by is our doing.
    """

    def get(self, name: str) -> torch.Tensor:
        tensor = super().get(name)
        if not name.endswith(("mlp.w1.weight", "mlp.w3.weight")):
            return tensor
        step = 2.0 ** torch.log2(tensor.float().std() / 2).round()
        return ((tensor.float() / step).round().clamp(-7, 7) * step).to(tensor.dtype)


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
