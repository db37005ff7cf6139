"""Images of a prompt: read or drawn, cut into tiles; which tokens see which.

The processor is Hugging Face's: Meta's resizes by another library and is not equal to the bit.
Next: image_engine.py runs them, image_generator.py seats their users.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.config import ModelConfig
from models.fields import is_there, shown
from models.numbers import NUMBERS, Bounds, counted
from models.vision_config import VisionConfig
from runtime.prompts import IMAGE_WORD, Prompt
from runtime.requests import Request

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_PIXELS = 64 * 2**20  # of one image: 8192 x 8192, 200 MB once unpacked
_SIDE, _SEED = Bounds(1, 8192), Bounds(0, 2**63 - 1)  # of an image that is drawn
_KINDS = 'a file, bytes, a Pillow image, or {"random": [width, height], "seed": 0}'


@dataclass(frozen=True, eq=False)
class Image:
    """One image as the tower takes it; equal pixels have equal digests."""

    pixels: torch.Tensor  # float32 [tiles there can be, channels, side, side], zeros beyond `tiles`
    layout: int  # number of the layout of tiles, from 1
    tiles: int
    size: tuple[int, int]  # pixels of the original: width, height
    name: str = "image"

    @cached_property
    def digest(self) -> int:
        """A number that stands for the image where tokens are compared."""
        data = self.pixels.numpy().tobytes() + bytes([self.layout])
        return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest(), "little")

    def __str__(self) -> str:
        width, height = self.size
        return f"{self.name} ({width}x{height} pixels, {counted(self.tiles, 'tile')})"


@dataclass(frozen=True)
class ImageRequest(Request):
    """A request whose prompt holds one image token for each of its images."""

    images: tuple[Image, ...] = ()
    image_token: int = -1

    @cached_property
    def contents(self) -> Sequence[int]:
        """The prompt with images in the places of their tokens."""
        images = iter(self.images)
        return [
            -next(images).digest if token == self.image_token else token for token in self.prompt
        ]


def load_image(source: Any, vision: VisionConfig) -> Image:
    """An image from any of its forms; ValueError says what is wrong with it and what would do."""
    picture, name = _open(source)
    width, height = picture.size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(
            f"{name} has {width}x{height} pixels: 1 to {MAX_PIXELS // 2**20} million (2^20) are "
            "read, give another size"
        )
    try:
        picture = picture.convert("RGB")
    except Exception as error:  # each format's reader has errors of its own
        raise _damaged(name, error) from None
    found = _processor(vision)(images=picture, return_tensors="pt")
    return Image(
        found["pixel_values"][0, 0].float(),
        int(found["aspect_ratio_ids"][0, 0]),
        int(found["num_tiles"][0][0]),
        (width, height),
        name,
    )


def blank_image(vision: VisionConfig, tiles: int | None = None) -> Image:
    """A black image of `tiles` tiles side by side; None: as many as the model takes."""
    tiles = tiles or vision.max_tiles
    shape = (vision.max_tiles, vision.channels, vision.image_size, vision.image_size)
    return Image(torch.zeros(shape), vision.ratio_id(1, tiles), tiles, (1, 1), "blank image")


def _open(source: Any) -> tuple[Picture, str]:
    """A picture, perhaps not read to its end yet, and what to call it."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    if isinstance(source, pillow.Image):
        return source, "image"
    if isinstance(source, Mapping):
        return _drawn(source)
    if isinstance(source, bytes):
        file: Any = io.BytesIO(source)
        name = "image"
    elif isinstance(source, str | Path):
        file, name = Path(source), str(source)
        if not is_there(file) or not file.is_file():
            raise ValueError(f"there is no image {shown(name, 200)}: give {_KINDS}")
    else:
        raise ValueError(f"an image is given as {type(source).__name__}: give {_KINDS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            return pillow.open(file), name
    except UnidentifiedImageError:
        raise ValueError(
            f"{name} is not an image: give one that Pillow reads (PNG, JPEG, ...)"
        ) from None
    except pillow.DecompressionBombError:
        raise ValueError(
            f"{name} has far more pixels than the {MAX_PIXELS // 2**20} million (2^20) that are "
            "read: make it smaller"
        ) from None
    except Exception as error:
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> ValueError:
    """What to say of an image that cannot be read, or of what a reader makes of its content."""
    if isinstance(error, OSError) and error.strerror:
        return ValueError(f"cannot read image {name}: {error.strerror}")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ValueError(f"{name} is cut short or damaged ({reason}): get it again")


def _drawn(wish: Mapping[str, Any]) -> tuple[Picture, str]:
    """Coloured rectangles and lines on a shaded ground, the same for the same seed."""
    from PIL import Image as pillow
    from PIL import ImageDraw

    size, seed = wish.get("random"), wish.get("seed", 0)
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [0]
    if set(wish) - {"random", "seed"} or seed not in _SEED or not all(n in _SIDE for n in sides):
        raise ValueError(
            f'cannot draw {shown(dict(wish))}: write {{"random": [560, 560], "seed": 0}}, '
            f"sides of {_SIDE.low} to {_SIDE.high} pixels"
        )
    width, height = sides
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(24, 7, generator=generator)
    ground = torch.linspace(0, 1, width)[None, :, None] * numbers[0, :3]
    ground = ground + torch.linspace(0, 1, height)[:, None, None] * numbers[0, 3:6]
    picture = pillow.fromarray((ground * 127).to(torch.uint8).numpy(), "RGB")
    draw = ImageDraw.Draw(picture)
    for x, y, w, h, *colour in numbers[1:].tolist():
        left, top = int(x * width), int(y * height)
        box = (left, top, left + 1 + int(w * width / 3), top + 1 + int(h * height / 3))
        draw.rectangle(box, fill=tuple(int(255 * part) for part in colour))
    return picture, f"random image {seed}"


@lru_cache(maxsize=4)
def _processor(vision: VisionConfig) -> Any:
    """Resizes, pads, normalises and cuts as the model was trained."""
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    return MllamaImageProcessorPil(
        size={"height": vision.image_size, "width": vision.image_size},
        max_image_tiles=vision.max_tiles,
        image_mean=list(vision.mean),
        image_std=list(vision.deviation),
    )


def image_spans(tokens: Sequence[int], image_token: int) -> list[tuple[int, int]]:
    """Positions [first, end) that see each image: from its token to the next group of images.

    Images side by side are one group; what is generated sees the images whose end is the prompt's.
    """
    places = [position for position, token in enumerate(tokens) if token == image_token]
    end, spans = len(tokens), []
    for index in reversed(range(len(places))):
        later = places[index + 1] if index + 1 < len(places) else None
        if later is not None and later != places[index] + 1:
            end = later
        spans.append((places[index], end))
    return spans[::-1]


def with_images(
    requests: Sequence[Request],
    prompts: Sequence[Prompt],
    config: ModelConfig,
    *,
    replaced: Path | None = None,
) -> list[Request]:
    """The requests with their prompts' images read; `replaced` is seen in place of all others."""
    vision = config.vision
    if replaced is not None and not any(prompt.images for prompt in prompts):
        raise ValueError(f"{replaced} is asked about by no prompt: give prompts with images")
    read: dict[str, Image] = {}
    found: list[Request] = []
    for request, prompt in zip(requests, prompts, strict=True):
        sources = [replaced or source for source in prompt.images]
        if sources:
            if vision is None:
                raise ValueError(
                    f"a prompt has an image, and {config.name} was loaded for text alone: leave it "
                    "out, or ask Llama-3.2-11B-Vision or Llama-3.2-90B-Vision in the vision demo"
                )
            for source in sources:
                if str(source) not in read:
                    read[str(source)] = load_image(source, vision)
            own = {field.name: getattr(request, field.name) for field in fields(Request)}
            images = tuple(read[str(source)] for source in sources)
            request = ImageRequest(**own, images=images, image_token=vision.image_token)
        check_images(request, vision, int(NUMBERS["images"].high), config.name)
        found.append(request)
    return found


def check_images(request: Request, vision: VisionConfig | None, most: int, name: str) -> None:
    """Refuse a prompt whose images and image tokens are not as many, or too many."""
    given = len(request.images) if isinstance(request, ImageRequest) else 0
    if given and vision is None:
        raise ValueError(
            f"{name} was loaded for text alone and is given {counted(given, 'image')}: load it "
            "with images, or leave them out"
        )
    if vision is None:
        return
    asked = sum(token == vision.image_token for token in request.prompt)
    if asked != given:
        raise ValueError(
            f"the prompt has {asked} {IMAGE_WORD} and {counted(given, 'image')}: give one for each"
        )
    if given > most:
        raise ValueError(
            f"the prompt has {counted(given, 'image')}, the model can be shown {most}: use fewer"
        )
