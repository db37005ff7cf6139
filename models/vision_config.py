"""The sizes of a vision model's image side: tower, tiles, and where the text stack looks at images.

Part of ModelConfig (config.py); files are read in vision_readers.py. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE = 32  # rows of a TT-NN tile
MOST_ROWS = 32_768  # of all tiles of an image: what a mask of rows by rows can be made for
# the means and deviations of red, green and blue that the published towers were trained with
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


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
    mean: tuple[float, ...] = MEAN  # taken from red, green and blue (0 to 1) ...
    deviation: tuple[float, ...] = DEVIATION  # ... and what the rest is divided by

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
        if self.max_tiles * self.tile_rows > MOST_ROWS:
            raise ValueError(
                f"{self.max_tiles} tiles of {self.tile_rows} rows are more than {MOST_ROWS}: use a "
                "smaller image_size or max_num_tiles, or a larger patch_size"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"{self.num_heads} vision heads do not divide {self.dim}")
        if self.dim % TILE:
            raise ValueError(f"the tower's width {self.dim} is no multiple of {TILE}")
        if any(layer >= self.num_layers for layer in self.intermediate_layers):
            raise ValueError(
                f"intermediate layers {list(self.intermediate_layers)} of the vision tower are "
                f"beyond its {self.num_layers} local layers"
            )

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
    """All rectangles (rows, columns) of at most so many tiles, in the order that numbers them."""
    sides = range(1, max_tiles + 1)
    return tuple((rows, cols) for rows in sides for cols in sides if rows * cols <= max_tiles)
