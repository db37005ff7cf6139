"""How a prompt is cut for prefill: padded to lengths, and into chunks where it is too long at once.

Plain arithmetic on token counts; runtime/engine.py runs what is planned here.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.sharding import BUCKET

# Products take long prompts in equal slices of whole tiles, 1024 rows at most: those of a length
# that none of these parts divides are small, down to a bucket for a prime number of buckets.
EVEN_PARTS, EVEN_FROM = (5, 6, 7, 8), 2048


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
    """What `length` tokens are padded to: a multiple of 128, beyond 2048 one with even parts.

    Padding is 127 rows at most, then 5 buckets more; fewer lengths need fewer programs, too.
    """
    buckets = max(1, -(-length // BUCKET))
    while buckets * BUCKET > EVEN_FROM and all(buckets % parts for parts in EVEN_PARTS):
        buckets += 1
    return buckets * BUCKET


def farthest_padding(length: int) -> int:
    """First position that no padding of a prompt of up to `length` tokens reaches."""
    return max(start + bucket_length(length - start) for start in range(0, length, BUCKET))


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
        chunks.append(Chunk(first, size, min(bucket_length(size), max_chunk), last))
    return chunks
