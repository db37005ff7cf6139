"""The sizes of a vision model's image side: tower, tiles, and where the text stack looks at images.

Part of ModelConfig (config.py); read from config.json or params.json here. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TILE = 32  # rows of a TT-NN tile


def no_vision(name: str) -> ValueError:
    """What to say where images are wanted of a model that takes none."""
    return ValueError(
        f"{name} takes no images: use Llama-3.2-11B-Vision, Llama-3.2-90B-Vision or another model "
        "of MllamaForConditionalGeneration"
    )


@dataclass(frozen=True)
class VisionConfig:
    """An image is cut into tiles, a tile into patches; a tile's tokens are its patches and a class.

    `cross_before[c]` is the text layer that cross-attention layer c runs in front of.
    """

    dim: int
    num_heads: int
    hidden_dim: int
    num_layers: int
    num_global_layers: int
    intermediate_layers: tuple[int, ...]  # whose outputs the text stack sees beside the last
    image_size: int  # pixels along a side of a tile
    patch_size: int
    max_tiles: int
    ratios: tuple[tuple[int, int], ...]  # (rows, columns) of tiles; numbered from 1, 0 is no image
    cross_before: tuple[int, ...]
    image_token: int
    norm_eps: float = 1e-5
    channels: int = 3
    embedding_rows: int = 8  # of the token table beyond the vocabulary; the image token's is first

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.tokens % 8 == 0:
            raise ValueError(
                f"{self.tokens} tokens a tile: a multiple of 8 leaves no room for padding rows, "
                "which this family's encoder attends to"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"{self.num_heads} vision heads do not divide {self.dim}")

    @property
    def patches(self) -> int:
        """Patches of a tile."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Patches and the class token of a tile."""
        return self.patches + 1

    @property
    def seen_rows(self) -> int:
        """Rows of a tile that queries see: tokens, and padding to a multiple of 8, as trained."""
        return -(-self.tokens // 8) * 8

    @property
    def tile_rows(self) -> int:
        """Rows of a tile on the device: whole TT-NN tiles."""
        return -(-self.tokens // TILE) * TILE

    @property
    def patch_values(self) -> int:
        """Numbers of one patch."""
        return self.channels * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def output_dim(self) -> int:
        """Width of what the projector takes: the last state and the intermediate ones."""
        return self.dim * (1 + len(self.intermediate_layers))

    @property
    def num_parameters(self) -> int:
        """Weights of the tower; the projector is the text model's to count."""
        dim, hidden = self.dim, self.hidden_dim
        layer = 4 * dim * dim + 2 * dim * hidden + hidden + dim + 4 * dim
        tables = (len(self.ratios) + 1) * self.max_tiles * dim
        total = (self.num_layers + self.num_global_layers) * layer + 2 * self.num_global_layers
        total += dim * self.patch_values + dim + 4 * dim  # patches, class token, two norms
        total += self.tokens * dim + 1 + tables * self.tokens  # positions
        return total + 2 * (tables + 1)  # of tiles, before and after the local layers

    def ratio_id(self, rows: int, columns: int) -> int:
        """The number of a way to lay out tiles."""
        return self.ratios.index((rows, columns)) + 1


def possible_ratios(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All rectangles of at most so many tiles, in the order that numbers them."""
    sides = range(1, max_tiles + 1)
    return tuple((rows, cols) for rows in sides for cols in sides if rows * cols <= max_tiles)


def vision_from_hf(hf: Mapping[str, Any], name: str) -> VisionConfig:
    """The image side of a config.json; a ValueError if it has none."""
    tower, text = hf.get("vision_config"), hf.get("text_config") or {}
    cross = text.get("cross_attention_layers")
    if not isinstance(tower, Mapping) or not cross:
        raise no_vision(name)
    needed = ("hidden_size", "image_size", "num_hidden_layers", "max_num_tiles")
    missing = [key for key in needed if tower.get(key) is None]
    if missing:
        raise ValueError(f"{name}: vision_config lacks {', '.join(missing)}")
    if tower.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            f"{name}: hidden_act {tower['hidden_act']!r} of the vision tower is not supported, "
            "only gelu is"
        )
    max_tiles = int(tower["max_num_tiles"])
    ratios = tower.get("supported_aspect_ratios") or possible_ratios(max_tiles)
    return VisionConfig(
        dim=int(tower["hidden_size"]),
        num_heads=int(tower.get("attention_heads") or tower.get("num_attention_heads") or 16),
        hidden_dim=int(tower.get("intermediate_size") or 5120),
        num_layers=int(tower["num_hidden_layers"]),
        num_global_layers=int(tower.get("num_global_layers") or 8),
        intermediate_layers=tuple(tower.get("intermediate_layers_indices") or (3, 7, 15, 23, 30)),
        image_size=int(tower["image_size"]),
        patch_size=int(tower.get("patch_size") or 14),
        max_tiles=max_tiles,
        ratios=tuple((int(rows), int(cols)) for rows, cols in ratios),
        cross_before=tuple(layer - number for number, layer in enumerate(cross)),
        image_token=int(hf.get("image_token_index") or text["vocab_size"]),
        norm_eps=float(tower.get("norm_eps") or 1e-5),
    )


def vision_from_meta(params: Mapping[str, Any], name: str) -> VisionConfig:
    """The image side of a params.json, which leaves all but three sizes to the code."""
    count = int(params.get("vision_num_cross_attention_layers") or 0)
    if "vision_chunk_size" not in params or count < 1:
        raise no_vision(name)
    layers = int(params["n_layers"])
    step = math.ceil(layers / count)  # cross-attention layers are dealt out from the last one down
    before = sorted(range(layers - 1, -1, -step)[:count])
    max_tiles = int(params.get("vision_max_num_chunks") or 4)
    return VisionConfig(
        dim=int(params.get("vision_dim") or 1280),
        num_heads=int(params.get("vision_n_heads") or 16),
        hidden_dim=int(params.get("vision_hidden_dim") or 5120),
        num_layers=int(params.get("vision_n_layers") or 32),
        num_global_layers=int(params.get("vision_n_global_layers") or 8),
        intermediate_layers=tuple(params.get("vision_return_layers") or (3, 7, 15, 23, 30)),
        image_size=int(params["vision_chunk_size"]),
        patch_size=int(params.get("vision_patch_size") or 14),
        max_tiles=max_tiles,
        ratios=possible_ratios(max_tiles),
        cross_before=tuple(before),
        image_token=int(params["vocab_size"]),
    )
