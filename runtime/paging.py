"""Who owns which block of the paged KV cache: plain bookkeeping, no tensors.

Ask (`can_allocate`), then take (`allocate`): a user's later growth is promised when it is let in,
so nobody runs out in mid-answer. Leading blocks with equal tokens are shared and counted; the block
of a prompt's last token, and all after it, are the user's own to write.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

NO_BLOCK = -1  # page-table entry of a block that does not exist; TT-NN's cache fill skips it


@dataclass
class _Pages:
    """One user's blocks, in the order of its tokens, and how many it may still take."""

    blocks: list[int]
    limit: int  # blocks it was promised in all

    @property
    def promised(self) -> int:
        return max(0, self.limit - len(self.blocks))


class BlockPool:
    """All blocks of one KV cache.

    `seed` hands blocks out in a random order, so that a wrong page table shows in the text.
    `share_prefixes` lets users with the same leading tokens read the same blocks.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        seed: int | None = None,
        share_prefixes: bool = False,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a cache of {num_blocks} blocks of {block_size} tokens is empty")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.share_prefixes = share_prefixes
        order = list(range(num_blocks))
        if seed is not None:
            random.Random(seed).shuffle(order)
        # free blocks, longest free first: a published prefix stays findable until it is reused
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(order)
        self._owners = [0] * num_blocks
        self._users: dict[Hashable, _Pages] = {}
        self._prefix_blocks: dict[bytes, int] = {}  # prefix key -> block that ends it
        self._prefix_keys: dict[int, bytes] = {}  # the inverse

    @property
    def num_free(self) -> int:
        """Blocks that are neither taken nor promised."""
        return len(self._free) - sum(pages.promised for pages in self._users.values())

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def holds(self, user: Hashable) -> bool:
        """Whether the user has blocks."""
        return user in self._users

    def can_allocate(self, tokens: Sequence[int], *, limit: int) -> bool:
        """Whether `allocate` with the same arguments would succeed now."""
        shared = self._shared_blocks(tokens)
        revived = sum(block in self._free for block in shared)
        return self._limit_blocks(tokens, limit) - len(shared) + revived <= self.num_free

    def allocate(self, user: Hashable, tokens: Sequence[int], *, limit: int) -> int:
        """Take blocks for a prompt and promise room for `limit` tokens in all.

        Returns how many leading tokens are already in the cache, a multiple of the block size and
        less than the prompt: the block of the last token is always the user's own to write.
        """
        if user in self._users:
            raise ValueError(f"user {user!r} already holds blocks: free them first")
        if not tokens:
            raise ValueError("an empty prompt needs no blocks: give at least one token")
        if not self.can_allocate(tokens, limit=limit):
            raise ValueError(
                f"KV cache is full: {self._limit_blocks(tokens, limit)} blocks of "
                f"{self.block_size} tokens asked for, {self.num_free} of {self.num_blocks} left"
            )
        shared = self._shared_blocks(tokens)
        for block in shared:
            self._free.pop(block, None)
            self._owners[block] += 1
        pages = _Pages(list(shared), self._limit_blocks(tokens, limit))
        self._users[user] = pages
        while len(pages.blocks) < self.blocks_for(len(tokens)):
            pages.blocks.append(self._take())
        return len(shared) * self.block_size

    def grow(self, user: Hashable, num_tokens: int) -> bool:
        """Take what is missing to hold `num_tokens` tokens; True if the user's table changed."""
        pages = self._users[user]
        missing = self.blocks_for(num_tokens) - len(pages.blocks)
        if missing <= 0:
            return False
        if missing - pages.promised > self.num_free:
            raise ValueError(
                f"KV cache is full: user {user!r} needs {missing} more blocks of "
                f"{self.block_size} tokens, {max(0, self.num_free)} of {self.num_blocks} are left"
            )
        pages.blocks += [self._take() for _ in range(missing)]
        return True

    def publish(self, user: Hashable, tokens: Sequence[int]) -> None:
        """Say that the user's blocks now hold these tokens, so that others may share them."""
        if not self.share_prefixes:
            return
        blocks = self._users[user].blocks
        for key, block in zip(self._keys(tokens), blocks, strict=False):
            if key not in self._prefix_blocks and block not in self._prefix_keys:
                self._prefix_blocks[key] = block
                self._prefix_keys[block] = key

    def free(self, user: Hashable) -> None:
        """Give back a user's blocks and what it was promised."""
        for block in reversed(self._users.pop(user).blocks):
            self._owners[block] -= 1
            if not self._owners[block]:
                self._free[block] = None

    def table(self, user: Hashable, width: int | None = None) -> list[int]:
        """The user's block numbers in token order, filled up to `width` with NO_BLOCK."""
        blocks = self._users[user].blocks
        return blocks + [NO_BLOCK] * ((width or len(blocks)) - len(blocks))

    def _limit_blocks(self, tokens: Sequence[int], limit: int) -> int:
        return self.blocks_for(max(limit, len(tokens)))

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._owners[block] = 1
        return block

    def _forget(self, block: int) -> None:
        key = self._prefix_keys.pop(block, None)
        if key is not None:
            del self._prefix_blocks[key]

    def _keys(self, tokens: Sequence[int]) -> list[bytes]:
        """One key per full block; it stands for all tokens up to the block's end."""
        keys = []
        digest = b""
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            block = array("q", tokens[end - self.block_size : end])
            digest = hashlib.blake2b(digest + block.tobytes(), digest_size=16).digest()
            keys.append(digest)
        return keys

    def _shared_blocks(self, tokens: Sequence[int]) -> list[int]:
        """Published blocks of the longest known prefix, short of the block of the last token."""
        shared: list[int] = []
        if not self.share_prefixes:
            return shared
        for key in self._keys(tokens[:-1]):
            if key not in self._prefix_blocks:
                break
            shared.append(self._prefix_blocks[key])
        return shared
