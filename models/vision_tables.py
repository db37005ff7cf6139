"""What the vision tower reads beside its weights: patches, positions, masks, as host tensors.

A tile's rows are the class token, its patches, and padding: first the rows that the encoder was
trained with (to a multiple of 8, `seen_rows`), then those that fill TT-NN's tiles, hidden from all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from models.sharding import TILE, round_up
from models.vision_config import VisionConfig

HIDDEN = -1e9  # added to scores of what must not be seen; smaller would overflow block formats


def patch_rows(pixels: torch.Tensor, v: VisionConfig) -> torch.Tensor:
    """Pixels [tiles, channels, side, side] as rows [1, 1, R, patch width]; row 0 of a tile is 0."""
    side, size = v.image_size // v.patch_size, v.patch_size
    cut = pixels.reshape(v.max_tiles, v.channels, side, size, side, size)
    patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(v.max_tiles, v.patches, v.patch_values)
    columns = round_up(v.patch_values, TILE) - v.patch_values
    below = v.tile_rows - v.tokens
    return F.pad(patches, (0, columns, 1, below)).reshape(1, 1, v.max_tiles * v.tile_rows, -1)


def position_table(
    get: Callable[[str], torch.Tensor], v: VisionConfig, layout: int
) -> torch.Tensor:
    """All that is added to the patches of an image of a layout of tiles, [1, 1, R, D].

    The class token, positions within the tile and of the tile, and (on patches) the tile's own.
    """
    gate = get("vision.positions.gate").float().tanh()
    table = (1 - gate) * get("vision.positions.embedding").float()
    table = table.repeat(v.max_tiles, 1, 1)
    of_tiles = get("vision.tile_positions.weight")[layout].float()
    table += gate * of_tiles.reshape(v.max_tiles, v.tokens, v.dim)
    table[:, 0] += get("vision.class_embedding").float()
    table[:, 1:] += tile_table(get, v, layout, "pre_tile")[0]
    below = v.tile_rows - v.tokens
    return F.pad(table, (0, 0, 0, below)).reshape(1, 1, v.max_tiles * v.tile_rows, v.dim)


def tile_table(
    get: Callable[[str], torch.Tensor], v: VisionConfig, layout: int, name: str
) -> torch.Tensor:
    """What is added to all rows of each tile, [1, tiles, 1, D]."""
    gate = get(f"vision.{name}.gate").float().tanh()
    table = get(f"vision.{name}.embedding.weight")[layout].float()
    return gate * table.reshape(1, v.max_tiles, 1, v.dim)


def token_rows(v: VisionConfig) -> torch.Tensor:
    """1 for tokens, 0 for padding, [1, 1, R, 1]: padding enters the encoder as zeros."""
    row = torch.arange(v.tile_rows) < v.tokens
    return row.float().repeat(v.max_tiles).reshape(1, 1, -1, 1)


def encoder_mask(v: VisionConfig, tiles: int) -> torch.Tensor:
    """What is added to the scores of an image of `tiles` tiles, [1, 1, R, R].

    Padding (rows, and tiles that are not there) does not see padding; tokens do, as trained. Rows
    that only fill TT-NN's tiles are seen by nobody, and see what padding sees.
    """
    row = torch.arange(v.tile_rows)
    filled = torch.stack([row < v.tokens] * tiles + [row < 0] * (v.max_tiles - tiles)).flatten()
    shown = (row < v.seen_rows).repeat(v.max_tiles)
    sees = shown[None, :] & (filled[:, None] | filled[None, :])
    return torch.zeros(sees.shape).masked_fill_(~sees, HIDDEN)[None, None]


def picked_rows(v: VisionConfig, images: list[tuple[int, int]]) -> torch.Tensor:
    """Numbers of the token rows of images side by side, (place, tiles) each, padded to tiles."""
    row = torch.arange(v.tokens)
    starts = [
        (place * v.max_tiles + tile) * v.tile_rows
        for place, tiles in images
        for tile in range(tiles)
    ]
    picked = torch.cat([start + row for start in starts])
    return F.pad(picked, (0, len(starts) * v.tile_rows - len(picked)))
