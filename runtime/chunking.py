"""How a prompt is cut for prefill: padded to buckets, and into chunks where it is too long at once.

Plain arithmetic on token counts; runtime/engine.py runs what is planned here.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.sharding import BUCKET


@dataclass(frozen=True)
class Chunk:
    """One prefill pass: tokens [start, start + length), padded at the end to `padded_length`."""

    start: int
    length: int
    padded_length: int
    last_index: int | None  # where the prompt's last token lies in this chunk, if it does

    @property
    def end(self) -> int:
        """First position after the chunk's real tokens."""
        return self.start + self.length


def bucket_length(length: int) -> int:
    """Smallest multiple of 128 that holds `length` tokens: never more than 127 rows of padding."""
    return max(BUCKET, -(-length // BUCKET) * BUCKET)


def plan_chunks(length: int, *, max_chunk: int, start: int = 0) -> list[Chunk]:
    """Cut tokens [start, length) into passes of at most `max_chunk` (a multiple of 128) tokens.

    `start` is the number of leading tokens whose keys and values are already in the cache.
    """
    if max_chunk <= 0 or max_chunk % BUCKET:
        raise ValueError(f"prefill chunk of {max_chunk} tokens: use a multiple of {BUCKET}")
    if not 0 <= start < length:
        raise ValueError(f"cannot prefill tokens {start} to {length}: at least one must be new")
    chunks = []
    for first in range(start, length, max_chunk):
        size = min(max_chunk, length - first)
        last = length - 1 - first if first + size == length else None
        chunks.append(Chunk(first, size, bucket_length(size), last))
    return chunks
