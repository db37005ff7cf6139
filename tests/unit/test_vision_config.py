"""What files say of a vision model's image side is read with types and bounds, in one line each."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as pillow

from models.config_readers import config_from_hf, config_from_meta
from models.registry import MODEL_PARAMS, load_config
from models.vision_readers import vision_from_hf
from runtime.images import load_image
from tests.tiny_models import write_tiny

LARGE = json.loads((MODEL_PARAMS / "Llama-3.2-11B-Vision" / "config.json").read_text())
PARAMS = {"dim": 256, "n_layers": 4, "n_heads": 4, "vocab_size": 512, "norm_eps": 1e-5}
PARAMS |= {"vision_chunk_size": 56, "vision_max_num_chunks": 2, "vision_dim": 160}
PARAMS |= {"vision_num_cross_attention_layers": 2, "vision_n_layers": 2, "vision_n_heads": 2}
PARAMS |= {"vision_return_layers": [0, 1]}


def changed(place: str, value: Any) -> dict[str, Any]:
    """The published config with one value changed; `part.key` names it."""
    content = copy.deepcopy(LARGE)
    part, _, key = place.rpartition(".")
    (content[part] if part else content)[key] = value
    return content


BAD = [
    ("vision_config", [1], "vision_config is [1]: use an object"),
    ("vision_config.hidden_size", "wide", "hidden_size is 'wide': use a whole number"),
    ("vision_config.hidden_size", 1e30, "hidden_size is 1e+30: use a whole number"),
    ("vision_config.hidden_size", None, "vision_config lacks hidden_size"),
    ("vision_config.hidden_size", 1296, "the tower's width 1296 is no multiple of 32"),
    ("vision_config.attention_heads", 0, "attention_heads is 0: use a whole number from 1"),
    ("vision_config.attention_heads", 7, "7 vision heads do not divide 1280"),
    ("vision_config.num_hidden_layers", True, "num_hidden_layers is True: use a whole number"),
    ("vision_config.num_hidden_layers", 12, "intermediate_layers_indices is [3, 7, 15, 23, 30]"),
    ("vision_config.num_global_layers", -1, "num_global_layers is -1: use a whole number"),
    ("vision_config.intermediate_layers_indices", "3", "intermediate_layers_indices is '3'"),
    ("vision_config.intermediate_layers_indices", [7, 3], "layers in rising order, each once"),
    ("vision_config.image_size", 561, "image_size 561 is no multiple of patch_size 14"),
    ("vision_config.image_size", 5600, "are more than 32768: use a smaller image_size"),
    ("vision_config.patch_size", 0, "patch_size is 0: use a whole number from 1"),
    ("vision_config.num_channels", 1, "num_channels is 1: use 3: red, green and blue"),
    ("vision_config.max_num_tiles", 65, "max_num_tiles is 65: use a whole number from 1 to 64"),
    ("vision_config.supported_aspect_ratios", [[1, 1], [2, 1]], "all rectangles of up to 4 tiles"),
    ("vision_config.vision_output_dim", 1280, "vision_output_dim is 1280: use 7680"),
    ("vision_config.norm_eps", float("nan"), "norm_eps is nan: use a number from 0 to 1"),
    ("vision_config.hidden_act", "relu", "hidden_act 'relu' of the vision tower is not supported"),
    ("vision_config.hidden_act", 3, "hidden_act is 3: use a text"),
    ("text_config.cross_attention_layers", [8, 3], "layers in rising order, each once"),
    ("text_config.cross_attention_layers", [3, 4], "layers that each have one in front of which"),
    ("text_config.cross_attention_layers", [39], "layers that each have one in front of which"),
    ("text_config.cross_attention_layers", [40], "use whole numbers from 0 to 39"),
    ("text_config.cross_attention_layers", [], "takes no images: use Llama-3.2-11B-Vision"),
    ("image_token_index", 5, "image_token_index is 5: use a whole number from 128256 to 128263"),
    ("image_token_index", "x", "image_token_index is 'x': use a whole number"),
]


@pytest.mark.parametrize(("place", "value", "message"), BAD)
def test_a_bad_value_of_config_json_is_one_line(place: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        vision_from_hf(changed(place, value), "m")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_chunk_size", "big", "params.json: vision_chunk_size is 'big': use a whole number"),
        ("vision_num_cross_attention_layers", 5, "use a whole number from 1 to 4"),
        ("vision_max_num_chunks", 0, "vision_max_num_chunks is 0"),
        ("vision_return_layers", [0, 9], "use whole numbers from 0 to 1"),
        ("vision_n_heads", 3, "3 vision heads do not divide 160"),
        ("vision_chunk_size", None, "takes no images"),
    ],
)
def test_a_bad_value_of_params_json_is_one_line(key: str, value: Any, message: str) -> None:
    assert config_from_meta(PARAMS, "m", vision=True).vision is not None
    with pytest.raises(ValueError) as error:
        config_from_meta(PARAMS | {key: value}, "m", vision=True)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("mllama", tmp_path_factory.mktemp("models") / "tiny")


def with_pixels(model: Path, **values: Any) -> Any:
    """The tiny model's image side beside a preprocessor_config.json of these values."""
    file = model / "preprocessor_config.json"
    file.write_text(json.dumps(values))
    try:
        return load_config(model, vision=True).vision
    finally:
        file.unlink()


def test_images_are_made_as_the_models_own_processor_makes_them(model: Path) -> None:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    theirs = MllamaImageProcessorPil(
        size={"height": 56, "width": 56}, max_image_tiles=2,
        image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3],
    )  # fmt: skip
    own = with_pixels(model, **theirs.to_dict())
    picture = pillow.linear_gradient("L").convert("RGB").resize((130, 50))
    expected = theirs(images=picture, return_tensors="pt")["pixel_values"][0, 0]
    assert torch.equal(load_image(picture, own).pixels, expected)
    plain = config_from_hf(model, vision=True).vision
    assert plain is not None and not torch.equal(load_image(picture, plain).pixels, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_mean": 0.5}, "image_mean is 0.5: use a list of numbers from 0 to 1"),
        ({"image_mean": [0.5, 0.5]}, "use three numbers: red, green and blue"),
        ({"image_std": [0, 1, 1]}, "image_std is [0, 1, 1]: use a list of numbers from 0.001"),
        ({"image_std": [1, 1, "x"]}, "image_std is [1, 1, 'x']"),
        ({"size": {"height": 448, "width": 56}}, "height is 448: use 56, the image_size"),
        ({"size": 56}, "size is 56: use an object"),
        ({"max_image_tiles": 4}, "max_image_tiles is 4: use 2"),
        ({"max_image_tiles": 10**9}, "use a whole number from 1 to 64"),
        ({"do_normalize": False}, "do_normalize is False: use true"),
        ({"resample": 3}, "resample is 3: use 2, bilinear"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0: use 1 / 255"),
    ],
)
def test_a_bad_preprocessor_config_is_one_line(
    model: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        with_pixels(model, **values)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "preprocessor_config.json" in str(error.value)
