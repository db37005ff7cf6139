"""Reads a VisionConfig out of HF's config.json and preprocessor_config.json, or Meta's params.json.

Every value is asked for with its type and bounds; what the tower could not compute is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.fields import Fields, read_object, shown
from models.vision_config import VisionConfig, no_vision, possible_ratios

PREPROCESSOR = "preprocessor_config.json"
INTERMEDIATE = (3, 7, 15, 23, 30)
BILINEAR = 2  # Pillow's number
_WIDTH, _LAYERS, _HEADS = (1, 2**16), (1, 1024), (1, 1024)
_HIDDEN, _PIXELS, _TILES = (1, 2**20), (1, 8192), (1, 64)
_EMBEDDING_ROWS = 8


def vision_from_hf(hf: Mapping[str, Any], name: str) -> VisionConfig:
    """The image side of a config.json; a ValueError if it has none."""
    whole = Fields(hf, f"{name}: config.json")
    tower, text = whole.table("vision_config"), whole.table("text_config")
    if not tower.values or not text.values.get("cross_attention_layers"):
        raise no_vision(name)
    activation = tower.text("hidden_act", "gelu")
    if activation != "gelu":
        raise ValueError(
            f"{name}: hidden_act {shown(activation)} of the vision tower is not supported, only "
            "gelu is"
        )
    if tower.integer("num_channels", 1, 64, 3) != 3:
        raise tower.refuse("num_channels", "3: red, green and blue")
    vocab_size = text.integer("vocab_size", 1, 2**24)
    max_tiles = tower.integer("max_num_tiles", *_TILES)
    heads = "attention_heads" if "attention_heads" in tower else "num_attention_heads"
    local_layers = tower.integer("num_hidden_layers", *_LAYERS)
    found = _checked(
        name,
        dim=tower.integer("hidden_size", *_WIDTH),
        num_heads=tower.integer(heads, *_HEADS, 16),
        hidden_dim=tower.integer("intermediate_size", *_HIDDEN, 5120),
        num_layers=local_layers,
        num_global_layers=tower.integer("num_global_layers", *_LAYERS, 8),
        intermediate_layers=_rising(
            tower, "intermediate_layers_indices", local_layers, INTERMEDIATE
        ),
        image_size=tower.integer("image_size", *_PIXELS),
        patch_size=tower.integer("patch_size", *_PIXELS, 14),
        max_tiles=max_tiles,
        ratios=_ratios(tower, max_tiles),
        cross_before=_cross_before(text),
        image_token=whole.integer(
            "image_token_index", vocab_size, vocab_size + _EMBEDDING_ROWS - 1, vocab_size
        ),
        norm_eps=tower.number("norm_eps", 0.0, 1.0, 1e-5),
    )
    if tower.integer("vision_output_dim", 1, 2**24, found.output_dim) != found.output_dim:
        raise tower.refuse(
            "vision_output_dim", f"{found.output_dim}, the width of the states that are projected"
        )
    return found


def with_preprocessor(vision: VisionConfig, directory: Path) -> VisionConfig:
    """The same with what a directory's preprocessor_config.json says of pixels, if it has one.

    Refused: sizes that are not the tower's, and steps that are left out.
    """
    file = directory / PREPROCESSOR
    if not file.is_file():
        return vision
    fields = Fields(read_object(file), str(file))
    for step in ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad"):
        if not fields.flag(step, True):
            raise fields.refuse(step, "true: the tower was trained on images made so")
    size = fields.table("size")
    for side in ("height", "width"):
        if size.integer(side, *_PIXELS, vision.image_size) != vision.image_size:
            raise size.refuse(side, f"{vision.image_size}, the image_size of config.json")
    if fields.integer("max_image_tiles", *_TILES, vision.max_tiles) != vision.max_tiles:
        raise fields.refuse("max_image_tiles", f"{vision.max_tiles}, max_num_tiles of config.json")
    if fields.integer("resample", 0, 5, BILINEAR) != BILINEAR:
        raise fields.refuse("resample", f"{BILINEAR}, bilinear")
    factor = fields.number("rescale_factor", 0.0, 1.0, 1 / 255)
    if not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise fields.refuse("rescale_factor", "1 / 255")
    mean = fields.numbers("image_mean", 0.0, 1.0) or vision.mean
    deviation = fields.numbers("image_std", 1e-3, 10.0) or vision.deviation
    for key, values in (("image_mean", mean), ("image_std", deviation)):
        if len(values) != vision.channels:
            raise fields.refuse(key, "three numbers: red, green and blue")
    return replace(vision, mean=mean, deviation=deviation)


def vision_from_meta(params: Mapping[str, Any], name: str) -> VisionConfig:
    """The image side of a params.json, which leaves all but three sizes to the code."""
    fields = Fields(params, f"{name}: params.json")
    if "vision_chunk_size" not in fields or "vision_num_cross_attention_layers" not in fields:
        raise no_vision(name)
    layers = fields.integer("n_layers", *_LAYERS)
    count = fields.integer("vision_num_cross_attention_layers", 1, layers)
    step = math.ceil(layers / count)  # cross-attention layers are dealt out from the last one down
    before = sorted(range(layers - 1, -1, -step)[:count])
    max_tiles = fields.integer("vision_max_num_chunks", *_TILES, 4)
    local_layers = fields.integer("vision_n_layers", *_LAYERS, 32)
    return _checked(
        name,
        dim=fields.integer("vision_dim", *_WIDTH, 1280),
        num_heads=fields.integer("vision_n_heads", *_HEADS, 16),
        hidden_dim=fields.integer("vision_hidden_dim", *_HIDDEN, 5120),
        num_layers=local_layers,
        num_global_layers=fields.integer("vision_n_global_layers", *_LAYERS, 8),
        intermediate_layers=_rising(fields, "vision_return_layers", local_layers, INTERMEDIATE),
        image_size=fields.integer("vision_chunk_size", *_PIXELS),
        patch_size=fields.integer("vision_patch_size", *_PIXELS, 14),
        max_tiles=max_tiles,
        ratios=possible_ratios(max_tiles),
        cross_before=tuple(before),
        image_token=fields.integer("vocab_size", 1, 2**24),
    )


def _checked(name: str, **sizes: Any) -> VisionConfig:
    try:
        return VisionConfig(**sizes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _rising(fields: Fields, key: str, end: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of layers below `end`, each larger than the one before."""
    found = fields.whole_numbers(key, 0, end - 1) or default
    if list(found) != sorted(set(found)):
        raise fields.refuse(key, "layers in rising order, each once")
    return found


def _cross_before(text: Fields) -> tuple[int, ...]:
    """Text layers that the cross-attention layers run in front of, by their own numbers."""
    key = "cross_attention_layers"
    layers = text.integer("num_hidden_layers", *_LAYERS)
    cross = _rising(text, key, layers, ())
    before = tuple(layer - number for number, layer in enumerate(cross))
    if len(set(before)) < len(before) or not before or before[-1] >= layers - len(cross):
        raise text.refuse(key, "layers that each have one in front of which they run")
    return before


def _ratios(tower: Fields, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Layouts of tiles, numbered as the processor numbers them."""
    key, expected = "supported_aspect_ratios", possible_ratios(max_tiles)
    given = tower.values.get(key)
    if given is not None and given != [list(ratio) for ratio in expected]:
        listed = ", ".join(f"[{rows}, {columns}]" for rows, columns in expected[:4])
        raise tower.refuse(
            key, f"all rectangles of up to {max_tiles} tiles in order: [{listed}, ...]"
        )
    return expected
