"""Keys and values of earlier positions: in pages behind a page table, or dense per user.

Both caches offer the same four verbs (fill, update, attend, attend_prefill), so attention does not
know which one it has. Pages are handed out by runtime/paging.py; -1 in a position marks an idle
slot, which writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import ttnn
from models.vision_config import TILE, VisionConfig


@dataclass(frozen=True)
class CacheConfig:
    """Size of the cache: pages of `block_size` positions, or None for one dense row per slot."""

    block_size: int | None
    num_blocks: int  # per data-parallel group; unused when dense


@dataclass(frozen=True)
class CacheAddress:
    """Where a forward pass reads and writes: device tensors (and the chunk's place in prefill).

    positions: int32 [B], -1 when idle (decode). pages: int32 [users, blocks per user].
    chunk_pages: the pages of this chunk alone. users: uint32/int32 [n] rows of `pages` (prefill).
    chunk_start_there: `chunk_start` on the device, int32 [1]: programs are the same for all.
    sight: what the users see of images; None where nobody sees any.
    """

    pages: Any = None
    positions: Any = None
    chunk_pages: Any = None
    users: Any = None
    slot: int = 0
    chunk_start: int | None = None
    chunk_start_there: Any = None
    sight: Sight | None = None


@dataclass(frozen=True)
class Sight:
    """What tokens see of images; keys and values of images lie in pages of their own.

    rows: 1 where a token sees an image, else 0, [1, 1, B, D] as the residual stream lies (decode)
    or [1, 1, S, 1] (prefill). keys: where each user's image keys lie; a user without an image has
    the page of zeros, at position 0 (decode), or where to write them (prefill; None: they are
    there). states: what the tower made of all images [1, 1, T, D], the last group first, of which
    `seen` rows count (prefill). mask: which token sees which row, if not all the same (prefill).
    """

    rows: Any
    keys: CacheAddress | None = None
    states: Any = None
    seen: int = 0
    mask: Any = None


NULL_PAGE = 0  # of zeros: what users without an image look at
KEPT_USERS = 4  # whose images' states stay on the device: 53 MB each for a width of 4096


def image_pages(vision: VisionConfig, images: int, users: int) -> CacheConfig:
    """Pages for the keys of `images` images of every user, and the page of zeros."""
    per_user = -(-images * vision.max_tiles * vision.tokens // TILE)
    return CacheConfig(TILE, 1 + users * per_user)


def kept_images(images: int, users: int) -> int:
    """Images whose states stay on the device, for prompts that come back to them.

    Those of one prompt at least; of a few users' where there are more.
    """
    return images * min(users, KEPT_USERS)


class PagedKVCache:
    """One layer's cache of `num_blocks` pages [K, block_size, W] each for keys and values."""

    def __init__(self, mesh: Any, config: CacheConfig, heads: int, width: int, dtype: Any) -> None:
        assert config.block_size is not None
        shape = [config.num_blocks, heads, config.block_size, width]
        self.dtype = dtype
        self.k, self.v = (
            ttnn.zeros(shape, dtype, ttnn.TILE_LAYOUT, mesh, ttnn.DRAM_MEMORY_CONFIG)
            for _ in range(2)
        )

    def update(self, k_1BKW: Any, v_1BKW: Any, at: CacheAddress, *, together: bool) -> None:
        """Write one position of every active user; in one op where they lie on other cores."""
        if together:
            ttnn.experimental.paged_fused_update_cache(
                self.k, k_1BKW, self.v, v_1BKW,
                update_idxs_tensor=at.positions, page_table=at.pages,
            )  # fmt: skip
            return
        for cache, new in ((self.k, k_1BKW), (self.v, v_1BKW)):
            ttnn.experimental.paged_update_cache(
                cache, new, update_idxs_tensor=at.positions, page_table=at.pages
            )

    def attend(self, q_1BHW: Any, at: CacheAddress, **arguments: Any) -> Any:
        """Attention of one query per user over its pages."""
        return ttnn.transformer.paged_scaled_dot_product_attention_decode(
            q_1BHW,
            self.k,
            self.v,
            page_table_tensor=at.pages,
            cur_pos_tensor=at.positions,
            **arguments,
        )

    def fill(self, k_NKSW: Any, v_NKSW: Any, at: CacheAddress) -> None:
        """Write whole prompts (or one chunk of one prompt)."""
        pages = at.pages if at.chunk_pages is None else at.chunk_pages
        for cache, new in ((self.k, k_NKSW), (self.v, v_NKSW)):
            if at.users is None:
                ttnn.experimental.paged_fill_cache(cache, new, pages, batch_idx=0)
            else:
                ttnn.experimental.paged_fill_cache(cache, new, pages, batch_idx_tensor=at.users)

    def attend_prefill(
        self,
        q_NHSW: Any,
        k_NKSW: Any,
        v_NKSW: Any,
        at: CacheAddress,
        *,
        ways: int,
        **arguments: Any,
    ) -> Any:
        """Causal attention within a whole prompt, or of a chunk over its prefix in the cache.

        Of queries that `ways` chips share, each gives its own early and late piece.
        """
        if ways > 1:
            whole = at.chunk_start is None
            keys = (k_NKSW, v_NKSW) if whole else (self.k, self.v)
            if not whole:
                arguments |= {"page_table": at.pages, "chunk_start_idx": at.chunk_start}
            return ttnn.transformer.ring_distributed_scaled_dot_product_attention(
                q_NHSW, *keys, ways, **arguments
            )
        if at.chunk_start is None:
            return ttnn.transformer.scaled_dot_product_attention(
                q_NHSW, k_NKSW, v_NKSW, is_causal=True, **arguments
            )
        # the op reads where the chunk starts on the device; the number is for records of it
        return ttnn.transformer.chunked_scaled_dot_product_attention(
            q_NHSW, self.k, self.v, at.pages, at.chunk_start,
            chunk_start_idx_tensor=at.chunk_start_there, **arguments,
        )  # fmt: skip


class DenseKVCache(PagedKVCache):
    """One layer's cache with one row of `length` positions per slot."""

    def __init__(
        self, mesh: Any, slots: int, heads: int, length: int, width: int, dtype: Any
    ) -> None:
        super().__init__(mesh, CacheConfig(length, slots), heads, width, dtype)

    def attend(self, q_1BHW: Any, at: CacheAddress, **arguments: Any) -> Any:
        return ttnn.transformer.scaled_dot_product_attention_decode(
            q_1BHW, self.k, self.v, cur_pos_tensor=at.positions, **arguments
        )

    def fill(self, k_NKSW: Any, v_NKSW: Any, at: CacheAddress) -> None:
        for cache, new in ((self.k, k_NKSW), (self.v, v_NKSW)):
            ttnn.fill_cache(cache, new, at.slot)

    def attend_prefill(
        self,
        q_NHSW: Any,
        k_NKSW: Any,
        v_NKSW: Any,
        at: CacheAddress,
        *,
        ways: int,
        **arguments: Any,
    ) -> Any:
        if at.chunk_start is not None:
            raise ValueError("a dense cache prefills whole prompts only: use paged attention")
        return super().attend_prefill(q_NHSW, k_NKSW, v_NKSW, at, ways=ways, **arguments)
