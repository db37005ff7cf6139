"""What vLLM has to see of a vision model: how images are read, and which tokens stand for them.

Runs in the server's process as well: no device, no TT-NN. What a step does with the images is
runtime/image_engine.py's; the runner hands them on through `images_of_request`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL.Image import DecompressionBombError
from transformers import BatchFeature
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from models.numbers import NUMBERS
from models.registry import load_config
from models.vision_config import VisionConfig
from runtime.images import MAX_PIXELS, Image, load_image
from runtime.prompts import IMAGE_WORD
from runtime.settings import Settings
from serving.model_files import checkpoint_of
from serving.options import ServeOptions, serving_device
from serving.text_model import TextModel


@MEDIA_CONNECTOR_REGISTRY.register("http")  # in place of vLLM's own
class Connector(MediaConnector):
    """Fetches what a request names; vLLM takes two of its mistakes for the server's."""

    async def fetch_image_async(self, image_url: str, **options: Any) -> Any:
        try:
            return await super().fetch_image_async(image_url, **options)
        except DecompressionBombError:
            raise ValueError(
                f"an image has far more pixels than the {MAX_PIXELS // 2**20} million (2^20) that "
                "are read: make it smaller"
            ) from None

    def _load_file_url(self, url_spec: Any, media_io: Any) -> Any:
        try:
            return super()._load_file_url(url_spec, media_io)
        except RuntimeError as error:
            raise ValueError(str(error)) from None


def most_images(model_config: Any) -> int:
    """Images that a prompt may have: one, unless --limit-mm-per-prompt says otherwise.

    None where a vision model runs its text stack alone: on a grid of chips.
    """
    asked = model_config.multimodal_config
    if asked is None or min(serving_device(ServeOptions(), Settings.from_env()).mesh_shape) > 1:
        return 0
    limit = asked.limit_per_prompt.get("image")
    return 1 if limit is None else min(limit.count, int(NUMBERS["images"].high))


class ImageInfo(BaseProcessingInfo):
    """What vLLM asks before there is a prompt."""

    @cached_property
    def vision(self) -> VisionConfig:
        model = self.ctx.model_config
        found = load_config(checkpoint_of(model.model, model.hf_config), vision=True).vision
        assert found is not None
        return found

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": most_images(self.ctx.model_config)}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        return {"image": 1}  # the others are keys of attention to images

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {}  # images are made as the tower was trained, and not otherwise


class ImageDummies(BaseDummyInputsBuilder[ImageInfo]):
    """A prompt of images alone."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_WORD * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> dict[str, Any]:
        side, count = self.info.vision.image_size, mm_counts.get("image", 0)
        return {"image": self._get_dummy_images(width=side, height=side, num_images=count)}


class ImageProcessor(BaseMultiModalProcessor[ImageInfo]):
    """Pictures to tiles, by the code that the demos read theirs with."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        images = [load_image(picture, self.info.vision) for picture in hf_data["images"]]
        return BatchFeature(
            {
                "pixels": torch.stack([image.pixels for image in images]),
                "facts": torch.tensor(
                    [(image.layout, image.tiles, *image.size) for image in images]
                ),
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {name: MultiModalFieldConfig.batched("image") for name in ("pixels", "facts")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        token = [self.info.vision.image_token]
        return [PromptReplacement(modality="image", target=token, replacement=token)]


@MULTIMODAL_REGISTRY.register_processor(ImageProcessor, info=ImageInfo, dummy_inputs=ImageDummies)
class VisionModel(TextModel):
    """Has the marks by which vLLM tells a model that takes images."""

    supports_multimodal = True

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What a chat template that knows no images is given in their place."""
        if modality != "image":
            raise ValueError(f"{modality} is not taken: use images")
        return IMAGE_WORD


def images_of_request(features: Sequence[Any]) -> tuple[Image, ...]:
    """The images of a request, in the order of their tokens."""
    found = []
    for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
        assert feature.data is not None, "requests with images read no prefix cache"
        data = feature.data.get_data()
        layout, tiles, width, height = data["facts"].tolist()
        found.append(Image(data["pixels"], layout, tiles, (width, height)))
    return tuple(found)
