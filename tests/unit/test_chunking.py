"""Prefill is cut so that every token is covered once and padding stays under 128 tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.plans.matmul import prefill_rows
from runtime.chunking import bucket_length, farthest_padding, plan_chunks


def test_a_bucket_is_the_next_multiple_of_128_that_products_can_take_in_even_slices() -> None:
    assert [bucket_length(n) for n in (1, 128, 129, 1000, 1025, 2048, 2049, 4736, 5504)] == [
        128, 128, 256, 1024, 1152, 2048, 2304, 5120, 5760,
    ]  # fmt: skip
    for n in range(2049, 20000, 77):
        assert min(slices_of(bucket_length(n))) >= 640


def slices_of(length: int) -> set[int]:
    """Rows that prefill products of most sizes take at once."""
    return {prefill_rows(length, most) for most in (1024, 2048, 4096)}


@given(
    start=st.integers(0, 4000),
    new=st.integers(1, 5000),
    max_chunk=st.integers(1, 16).map((128).__mul__),
)
def test_chunks_cover_every_token_once_and_only_the_last_holds_the_last_token(
    start: int, new: int, max_chunk: int
) -> None:
    chunks = plan_chunks(start + new, start=start, max_chunk=max_chunk)
    covered = [p for chunk in chunks for p in range(chunk.start, chunk.end)]
    assert covered == list(range(start, start + new))
    for chunk in chunks:
        assert chunk.length <= chunk.padded_length < chunk.length + 128 * 5
        assert chunk.end + chunk.padded_length - chunk.length <= farthest_padding(start + new) + 128
        assert chunk.padded_length <= max_chunk
    assert [chunk.last_index is None for chunk in chunks[:-1]] == [True] * (len(chunks) - 1)
    assert chunks[-1].last_index is not None
    assert chunks[-1].start + chunks[-1].last_index == start + new - 1


@pytest.mark.parametrize(
    ("length", "start", "max_chunk"), [(10, 10, 128), (10, 0, 100), (0, 0, 128)]
)
def test_an_impossible_plan_is_refused(length: int, start: int, max_chunk: int) -> None:
    with pytest.raises(ValueError):
        plan_chunks(length, start=start, max_chunk=max_chunk)
