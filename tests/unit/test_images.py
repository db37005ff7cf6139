"""Images are cut as Hugging Face cuts them, and what is wrong with one is said in one line."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow

from demo.cases import VISION_CASES
from demo.flow import prepare
from models.checkpoints.reference import hf_config
from models.footprint import HOLES, dram_bytes
from models.registry import load_config
from models.vision_tables import encoder_mask, patch_rows, picked_rows
from runtime.blueprint import LoadOptions, draw
from runtime.images import ImageRequest, check_images, image_spans, load_image, with_images
from runtime.prompts import Prompt, build_prompt, load_entries
from runtime.requests import Request
from runtime.settings import Settings
from tests.tiny_models import TINY_VISION, tiny_config, write_tiny

CONFIG = TINY_VISION["mllama"]
VISION: Any = CONFIG.vision
LARGE: Any = load_config("Llama-3.2-11B-Vision", vision=True).vision
TOKEN = VISION.image_token


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    numbers = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pillow.fromarray(numbers).save(file, "PNG")
    return file.getvalue()


def test_a_file_its_bytes_and_the_opened_picture_are_one_image(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(png(130, 50))
    found = [load_image(x, VISION) for x in (str(file), file.read_bytes(), pillow.open(file))]
    assert {image.digest for image in found} == {found[0].digest}
    assert (found[0].layout, found[0].tiles, found[0].size) == (2, 2, (130, 50))
    assert str(found[0]) == f"{file} (130x50 pixels, 2 tiles)"


def test_drawn_images_differ_by_seed_alone() -> None:
    first, again, other = (load_image({"random": [60, 60], "seed": n}, VISION) for n in (1, 1, 2))
    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("size", "layout"),
    [((560, 560), (1, 1)), ((1120, 560), (1, 2)), ((560, 1120), (2, 1)), ((1120, 1120), (2, 2)),
     ((2000, 300), (1, 4)), ((300, 2000), (4, 1))],
)  # fmt: skip
def test_the_published_models_cut_images_into_up_to_four_tiles(
    size: tuple[int, int], layout: tuple[int, int]
) -> None:
    image = load_image({"random": list(size)}, LARGE)
    assert LARGE.ratios[image.layout - 1] == layout
    assert image.tiles == layout[0] * layout[1]
    assert image.pixels.shape == (4, 3, 560, 560) and not image.pixels[image.tiles :].any()


def test_patches_times_the_weight_are_what_hfs_convolution_gives() -> None:
    from transformers import MllamaVisionModel

    image = load_image({"random": [100, 50], "seed": 1}, VISION)
    tower = MllamaVisionModel(hf_config(CONFIG).vision_config)
    weight = tower.patch_embedding.weight.detach()
    expected = tower.patch_embedding(image.pixels).flatten(2).transpose(1, 2)  # [tiles, patches, D]
    rows = patch_rows(image.pixels, VISION).reshape(VISION.max_tiles, VISION.tile_rows, -1)
    found = rows[..., : VISION.patch_values] @ weight.flatten(1).T
    torch.testing.assert_close(found[:, 1 : VISION.tokens], expected, rtol=1e-4, atol=1e-4)
    assert not rows[:, 0].any() and not rows[:, VISION.tokens :].any()


@pytest.mark.parametrize("tiles", [1, 2])
def test_the_encoders_mask_is_hfs_where_hf_has_rows(tiles: int) -> None:
    from transformers.models.mllama import modeling_mllama as hf

    there = torch.tensor([[1] * tiles + [0] * (VISION.max_tiles - tiles)])
    seen = VISION.seen_rows
    theirs = hf._prepare_aspect_ratio_attention_mask(there, VISION.tokens, seen, torch.float32)
    shape = (VISION.max_tiles, VISION.tile_rows) * 2
    ours = encoder_mask(VISION, tiles).reshape(shape)
    assert (ours[:, :, :, seen:] < -1e8).all()  # nobody sees what fills the device's tiles
    assert torch.equal(
        ours[:, :seen, :, :seen].reshape(theirs[0, 0].shape) < -1e8, theirs[0, 0] < -1e8
    )


@pytest.mark.parametrize("places", [(2,), (2, 3), (2, 7), (0, 1, 5, 6, 9), (1, 9)], ids=str)
def test_tokens_see_the_images_that_hf_lets_them_see(places: tuple[int, ...]) -> None:
    from transformers.models.mllama import processing_mllama as hf

    tokens = [TOKEN if i in places else 1 for i in range(12)]
    theirs = [
        (first, len(tokens) if last == -1 else last)
        for first, last in hf.get_cross_attention_token_mask(tokens, TOKEN)
    ]
    assert image_spans(tokens, TOKEN) == theirs


def test_rows_are_picked_image_by_image_and_padded_to_tiles() -> None:
    rows = picked_rows(VISION, [(1, 2), (0, 1)])
    starts = [(1 * 2 + 0) * 32, (1 * 2 + 1) * 32, 0]
    real = [start + row for start in starts for row in range(VISION.tokens)]
    assert rows[: len(real)].tolist() == real and len(rows) == 3 * VISION.tile_rows


def test_prompts_name_their_images_and_say_where_they_belong(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(60, 60))
    entries = [
        {"prompt": "What?", "image": "cat.png"},
        {"prompt": "Same <|image|> as <|image|>?", "image": ["cat.png", {"random": [9, 9]}]},
        {"prompt": "No picture."},
    ]
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(entries))
    prompts = [
        build_prompt(entry, folder=tmp_path, instruct=True, count_tokens=len, room=100)
        for entry in load_entries(file)
    ]
    assert [prompt.text for prompt in prompts] == [
        "<|image|>What?", "Same <|image|> as <|image|>?", "No picture.",
    ]  # fmt: skip
    tokens = ([TOKEN, 1], [TOKEN, 1, TOKEN], [1])
    made = with_images([Request(t, 1) for t in tokens], prompts, CONFIG)
    assert [len(getattr(request, "images", ())) for request in made] == [1, 2, 0]
    assert made[0].contents[0] == made[1].contents[0] != made[1].contents[2] < 0


def truncated() -> bytes:
    return png(200, 200)[:3000]


def claiming(side: int) -> bytes:
    """A PNG of a few hundred bytes that claims `side` pixels along each side."""
    small = bytearray(png(1, 1))
    small[16:24] = side.to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    return bytes(small)


def long_text() -> bytes:
    """A PNG with more text behind its header than Pillow unpacks: an error outside OSError."""
    image, text = png(9, 9), b"zTXt" + b"k\0\0" + zlib.compress(bytes(2**21))
    part = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    return image[:33] + part + image[33:]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: "no/such/file.png", "there is no image 'no/such/file.png': give a file"),
        (lambda: "x" * 5000, r"there is no image 'x+\.\.\.: give a file"),
        (lambda: b"not an image at all", "is not an image: give one that Pillow reads"),
        (truncated, "is cut short or damaged"),
        (lambda: b"\x89PNG\r\n\x1a\n" + b"0" * 40, "is cut short or damaged"),
        (lambda: claiming(100_000), "far more pixels than the 64 million"),
        (lambda: claiming(10_000), "10000x10000 pixels: 1 to 64 million"),
        (lambda: pillow.new("RGB", (0, 5)), "0x5 pixels: 1 to 64 million"),
        (long_text, r"is cut short or damaged \(Decompressed data too large"),
        (lambda: 5, "an image is given as int: give a file"),
        (lambda: {"random": [0, 5]}, "cannot draw"),
        (lambda: {"random": "x"}, "cannot draw"),
        (lambda: {"random": [5, 5], "seed": 2**70}, "cannot draw"),
        (lambda: {"random": [5, 5], "sed": 1}, "cannot draw"),
    ],
    ids=[
        "missing", "too long a name", "no image", "cut short", "no header", "bomb", "large",
        "no pixels", "a reader's own error", "type", "empty", "words", "seed", "unknown word",
    ],
)  # fmt: skip
def test_a_bad_image_is_one_line(source: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_image(source(), VISION)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda image: check_images(Request([1, TOKEN], 1), VISION, 1, "m"),
            r"has 1 <\|image\|> and 0 images: give one for each",
        ),
        (
            lambda image: check_images(ImageRequest([1], 1, images=(image,)), VISION, 1, "m"),
            r"has 0 <\|image\|> and 1 image: give one for each",
        ),
        (
            lambda image: check_images(
                ImageRequest([TOKEN, TOKEN], 1, images=(image, image)), VISION, 1, "m"
            ),
            "has 2 images, the model can be shown 1: use fewer",
        ),
        (
            lambda image: check_images(ImageRequest([1], 1, images=(image,)), None, 0, "m"),
            "m was loaded for text alone",
        ),
        (
            lambda image: with_images(
                [Request([1], 1)], [Prompt("x", images=({"random": [5, 5]},))], tiny_config("llama")
            ),
            "tiny-llama was loaded for text alone: leave it out, or ask Llama-3.2-11B-Vision",
        ),
        (
            lambda image: with_images(
                [Request([1], 1)], [Prompt("x")], CONFIG, replaced=Path("a.png")
            ),
            "a.png is asked about by no prompt",
        ),
        (lambda image: load_config("Llama-3.1-8B", vision=True), "Llama-3.1-8B takes no images"),
        (
            lambda image: _draw("Llama-3.2-11B-Vision", "TG", 1),
            "on one chip or a line of chips, not on a mesh of 8x4",
        ),
        (
            lambda image: _draw("Llama-3.2-11B-Vision", "N300", 9),
            "images is 9: use a whole number from 0 to 8",
        ),
        (
            lambda image: _draw("Llama-3.2-90B-Vision", "N300", 1).check_fits(),
            r"does not fit N300: each chip needs \d+\.\d GiB of weights",
        ),
    ],
)  # fmt: skip
def test_images_where_they_do_not_belong_are_one_line(
    call: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(load_image({"random": [60, 60]}, VISION))
    assert "\n" not in str(error.value)


def test_a_pass_of_the_tower_that_the_cache_leaves_no_room_for_is_refused_in_numbers() -> None:
    plan = _draw("Llama-3.2-11B-Vision", "N300", 1)
    empty = plan.with_cache(0, 1024).needs
    page = plan.with_cache(1024, 1024).needs.cache / 1024
    free = dram_bytes(plan.spec) - empty.weights - empty.tables
    most = int((free - HOLES * empty.looking) / page)
    plan.with_cache(most, 1024).check_fits()
    with pytest.raises(ValueError, match=r"of cache, 0\.\d GiB to look at images, and has"):
        plan.with_cache(int(free / page), 1024).check_fits()


def test_a_demo_loads_for_as_many_images_as_its_prompts_have_and_says_early_what_is_wrong(
    tmp_path: Path,
) -> None:
    model = write_tiny("mllama", tmp_path / "tiny")
    settings = Settings.from_env({"TT_BACKEND": "emulator", "HF_MODEL": str(model)})

    def job(*entries: Any) -> Any:
        file = tmp_path / "prompts.json"
        file.write_text(json.dumps(entries))
        return prepare(replace(VISION_CASES[0], input_prompts=str(file)), {}, settings)

    drawn = {"random": [60, 60]}
    several = job({"prompt": "These?", "image": [drawn, drawn]}, {"prompt": "Nothing?"})
    assert several.case.images == 2 and job({"prompt": "Nothing?"}).case.images == 1
    for entry, message in (
        ({"prompt": "<|image|> What?"}, r"has 1 <\|image\|> and 0 images"),
        ({"prompt": "What?", "image": [drawn] * 9}, "has 9 images, the model can be shown 8"),
        ({"prompt": "What?", "image": {"random": [0, 1]}}, "cannot draw {'random': "),
        ({"prompt": "What?", "image": "no.png"}, "there is no image 'no.png'"),
    ):
        with pytest.raises(ValueError, match=message):
            job(entry)


def _draw(model: str, device: str, images: int) -> Any:
    options = LoadOptions(model=model, device=device, images=images)
    return draw(options, Settings(backend="emulator"), load_config(model, vision=True))
