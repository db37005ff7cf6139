"""Which chip holds what: one table from logical axes to mesh axes, and the sizes that follow.

A 1D mesh (1, N) splits heads, hidden and vocab N ways and fractures the residual stream over the
same axis. A 2D mesh (R, C) splits heads, hidden and vocab over its rows and the model width over
its columns; a column also owns its share of the users, unless they are fewer than columns. Sizes
that do not divide are padded with zeros, which never changes a result. Next: models/weights.py
arranges weights by this table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from models.config import ModelConfig

TILE = 32
BUCKET = 128  # tokens; prompts are padded to a multiple of it, as the device plans are made for
MAX_USERS = 32  # one tile row of decode activations holds one user each
HEADS_TILE = TILE * TILE  # values of a user's heads on a chip that rotary embedding turns in rows

# logical axis -> mesh axis (None: every chip has all of it); "residual" is the activations' width
MESH_AXES_1D: dict[str, int | None] = {
    "heads": 1, "hidden": 1, "vocab": 1, "dim": None, "residual": 1, "users": None,
}  # fmt: skip
MESH_AXES_2D: dict[str, int | None] = {
    "heads": 0, "hidden": 0, "vocab": 0, "dim": 1, "residual": 1, "users": 1,
}  # fmt: skip


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class HeadLayout:
    """Which original head sits in which place: None marks a zero head that pads the shard."""

    query: tuple[tuple[int | None, ...], ...]  # [shard][local query head]
    key_value: tuple[tuple[int | None, ...], ...]  # [shard][local key/value head]


def lay_out_heads(num_heads: int, num_kv_heads: int, shards: int) -> HeadLayout:
    """Spread grouped-query heads over chips, padding query heads and replicating key/value heads.

    Every shard gets the same number of key/value heads and, for each of them, the same number of
    query heads, so the kernels' rule (query head i reads key/value head i // group) holds locally.
    """
    group = num_heads // num_kv_heads
    if num_kv_heads >= shards:
        local = math.ceil(num_kv_heads / shards)
        kv = [[_real(s * local + j, num_kv_heads) for j in range(local)] for s in range(shards)]
        query = [[_query(head, 0, group, group) for head in row] for row in kv]
    else:
        replicas = shards // num_kv_heads
        share = math.ceil(group / replicas)
        kv, query = [], []
        for shard in range(shards):
            head, part = divmod(shard, replicas)
            real = _real(head, num_kv_heads)
            kv.append([real])
            query.append([_query(real, part * share, share, group)])
    return HeadLayout(
        tuple(tuple(h for part in row for h in part) for row in query),
        tuple(tuple(row) for row in kv),
    )


def fill_heads(heads: HeadLayout, count: int) -> HeadLayout:
    """The same with zero heads after each shard's queries, up to `count`."""
    filled = [(*row, *(None,) * (count - len(row))) for row in heads.query]
    return HeadLayout(tuple(filled), heads.key_value)


def _real(index: int, count: int) -> int | None:
    return index if index < count else None


def _query(kv_head: int | None, first: int, count: int, group: int) -> list[int | None]:
    """The `count` query heads of one key/value head from its `first` on; None beyond the group."""
    inside = [first + j < group for j in range(count)]
    return [
        kv_head * group + first + j if kv_head is not None and inside[j] else None
        for j in range(count)
    ]


@dataclass(frozen=True)
class Sharding:
    """One model's sizes on one mesh; all widths are padded, `local_*` are per chip."""

    config: ModelConfig
    rows: int
    cols: int
    pad_mlp_cores: int | None = None  # pad hidden so that this many cores share it evenly
    ring_cores: int | None = None  # cores of the ring of decode products (plans/fused.py)
    shared_users: bool = False  # columns attend for the same users: there are too few to deal out

    @property
    def padding(self) -> str | None:
        """What weights of these sizes hold beyond the model's; None: what they have to."""
        parts = (self.pad_mlp_cores, self.ring_cores and f"ring{self.ring_cores}")
        return "-".join(str(part) for part in parts if part) or None

    @property
    def is_2d(self) -> bool:
        return self.rows > 1

    @property
    def num_chips(self) -> int:
        return self.rows * self.cols

    @property
    def mesh_axes(self) -> dict[str, int | None]:
        axes = MESH_AXES_2D if self.is_2d else MESH_AXES_1D
        return axes | {"users": None} if self.shared_users else axes

    def ways(self, logical: str) -> int:
        """How many pieces a logical axis is cut into; an unknown axis is an error."""
        if logical not in self.mesh_axes:
            raise ValueError(f"unknown axis {logical!r}: choose one of {', '.join(self.mesh_axes)}")
        axis = self.mesh_axes[logical]
        return 1 if axis is None else (self.rows, self.cols)[axis]

    # --- padded global sizes
    @property
    def dim(self) -> int:
        return round_up(self.config.dim, TILE * self.ways("residual"))

    @cached_property
    def hidden(self) -> int:
        # on a 2D mesh the halves of the gated product are also scattered over the columns
        unit = TILE * self.ways("hidden") * (self.cols if self.is_2d else 1)
        if self.pad_mlp_cores:
            return round_up(self.config.hidden_dim, unit * self.pad_mlp_cores)
        if self.ring_cores:  # columns of chips share whole cores of the ring
            each = self.hidden_on_ring(self.ring_cores)
            # of 5 tiles from each core, and all cores, the wheel has a faster gather
            used = self.ring_cores if each == 5 else math.ceil(self.hidden_tiles / each)
            return round_up(used, self.cols) * each * TILE * self.ways("hidden")
        padded = round_up(self.config.hidden_dim, unit)
        # a tile count without a good divisor would leave most cores idle: pad it a little
        while not _has_good_grid(padded // self.ways("hidden") // TILE):
            padded += unit
        return padded

    @property
    def hidden_tiles(self) -> int:
        """Tiles of a chip's inner activations, before they are padded further."""
        return math.ceil(self.config.hidden_dim / (TILE * self.ways("hidden")))

    def hidden_on_ring(self, cores: int) -> int:
        """Tiles of them that a core of a ring makes."""
        return math.ceil(self.hidden_tiles / cores)

    @property
    def vocab(self) -> int:
        ways = self.ways("vocab")
        return ways * searched_width(-(-self.config.vocab_size // ways))

    @cached_property
    def heads(self) -> HeadLayout:
        config = self.config
        heads = lay_out_heads(config.num_heads, config.num_kv_heads, self.ways("heads"))
        return fill_heads(heads, HEADS_TILE // self.head_dim) if self.ring_cores else heads

    # --- per chip
    @property
    def local_residual(self) -> int:
        return self.dim // self.ways("residual")

    @property
    def local_dim(self) -> int:
        """Model width as a weight matrix on one chip sees it."""
        return self.dim // self.ways("dim")

    @property
    def local_hidden(self) -> int:
        return self.hidden // self.ways("hidden")

    @property
    def local_vocab(self) -> int:
        return self.vocab // self.ways("vocab")

    @property
    def local_heads(self) -> int:
        return len(self.heads.query[0])

    @property
    def local_kv_heads(self) -> int:
        return len(self.heads.key_value[0])

    @property
    def head_dim(self) -> int:
        """Width of a head in whole tiles: what pads it are zeros that no rotation turns."""
        return round_up(self.config.head_dim, TILE)

    @property
    def local_q_width(self) -> int:
        return self.local_heads * self.head_dim

    @property
    def local_qkv_width(self) -> int:
        return (self.local_heads + 2 * self.local_kv_heads) * self.head_dim

    def slots(self, batch: int) -> int:
        """Decode slots of a batch; where columns have users of their own, as many for each."""
        return round_up(batch, self.ways("users"))

    def local_users(self, batch: int) -> int:
        """Users a chip attends for, of a decode batch of `batch` slots."""
        return batch // self.ways("users")

    # --- norms over padded width: scaling weight and epsilon makes the padded mean exact
    @property
    def norm_eps(self) -> float:
        return self.config.norm_eps * self.config.dim / self.dim

    @property
    def norm_scale(self) -> float:
        return math.sqrt(self.config.dim / self.dim)

    @property
    def head_norm_eps(self) -> float:
        return self.config.norm_eps * self.config.head_dim / self.head_dim

    @property
    def head_norm_scale(self) -> float:
        return math.sqrt(self.config.head_dim / self.head_dim)


def _has_good_grid(tiles: int) -> bool:
    """Whether at least 16 cores (or all tiles of a small width) can share `tiles` evenly."""
    return best_core_count(tiles, 64) >= min(16, tiles)


def best_core_count(tiles: int, most: int, columns: int = 8, rows: int = 8) -> int:
    """Largest core count up to `most` that divides `tiles` and forms a rectangle."""
    for count in range(min(most, columns * rows), 0, -1):
        if tiles % count == 0 and any(
            count % y == 0 and count // y <= columns for y in range(1, rows + 1)
        ):
            return count
    return 1


# Columns of a row that many cores search together for its largest values. Other widths fall to one
# core, which takes thirty times as long: kernels of the wheel, and tt-metal#53108.
LEAST_SEARCHED, MOST_SEARCHED = 1024, 32_768
SPARE = 0.08  # columns that may be added for it


def searched_width(columns: int) -> int:
    """`columns` padded to a sum of few powers of two that many cores search, else to tiles."""
    width, rest = 0, columns
    while rest > 0:
        whole = max(LEAST_SEARCHED, 1 << (rest - 1).bit_length())
        if whole <= MOST_SEARCHED and width + whole - columns <= SPARE * columns:
            return width + whole
        if rest < LEAST_SEARCHED:
            return round_up(columns, TILE)
        part = min(MOST_SEARCHED, 1 << (rest.bit_length() - 1))
        width, rest = width + part, rest - part
    return width


def searched_parts(width: int) -> list[int]:
    """The powers of two that a width is the sum of, largest first; a width that is none, whole."""
    if width % LEAST_SEARCHED:
        return [width]
    parts: list[int] = []
    while width:
        parts.append(min(MOST_SEARCHED, 1 << (width.bit_length() - 1)))
        width -= parts[-1]
    return parts
