"""The arithmetic of ops whose work does not follow from their operands alone, each stated once.

An emulated op calls these to say what it costs, and so does whoever describes an op that was timed
elsewhere. How long it takes is for others to say.
"""

from __future__ import annotations

import math

TILE = 32


def product_flops(rows: int, inner: int, columns: int) -> int:
    """FLOPs of a matrix product: the matrix unit takes whole tiles, so padding is multiplied too.

    `rows` are those of all matrices one after the other, padded to tiles.
    """
    return 2 * math.prod(-(-size // TILE) * TILE for size in (rows, inner, columns))


def attention_flops(queries: int, keys: float, width: int) -> int:
    """FLOPs of scores and values for `queries` (of all heads) that see `keys` keys on average."""
    return int(4 * queries * keys * width)


def kv_bytes(tile_bytes: int, heads: int, positions: int, width: int) -> int:
    """Bytes of one user's keys and values: whole tiles of 32 positions."""
    return 2 * tile_bytes * heads * -(-positions // TILE) * -(-width // TILE)


def update_bytes(tile_bytes: int, users: int, heads: int, width: int) -> int:
    """Bytes that writing one position of a cache moves.

    A position is one row of a tile, and the kernel knows only tiles: of each head of each user it
    reads the row of tiles that holds the position, untilizes it, puts the row in, writes it back.
    """
    return 2 * tile_bytes * users * heads * -(-width // TILE)


def link_bytes(whole: int, chips: int, *, ring: bool) -> int:
    """Bytes over the busiest link, one direction, of a gather or scatter of `whole` bytes.

    A chip's own part does not travel. A line's last link carries all others; on a ring parts go
    both ways, the farthest one half and half.
    """
    return whole * (chips - 1) // chips // (2 if ring and chips > 2 else 1)


def shared_rows(rows: int, columns: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Tiles (rows, columns) of a core where rows of tiles and their columns are dealt to a grid.

    As the norms of shares do it: each side is cut into the most equal parts up to the grid's rows;
    a column of cores takes whole rows. Nothing fits where parts outnumber the grid's columns.
    """
    most_columns, most = grid
    across = max(n for n in range(1, min(most, rows) + 1) if rows % n == 0)
    if across > most_columns:
        raise ValueError(
            f"{rows} rows of tiles take {across} columns of cores, but there are {most_columns}: "
            "leave rows whole"
        )
    down = max(n for n in range(1, min(most, columns) + 1) if columns % n == 0)
    return rows // across, columns // down
