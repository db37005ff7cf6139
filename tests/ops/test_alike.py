"""Chips whose caches hold the same are known, and only those; reading them once changes nothing."""

from __future__ import annotations

import pytest
import torch

from backends.emulator.kv import alike
from backends.emulator.loops import native
from backends.emulator.ops.attention_decode import attend

MESH = (2, 3)
EVERYONE = torch.zeros(1, 1, 4)  # positions that all chips share
BY_COLUMN = torch.zeros(1, 3, 4)


def cache() -> torch.Tensor:
    made = torch.zeros(*MESH, 5, 1, 32, 16).bfloat16()
    alike.note_zeros(made)
    return made


def rows(*values: float) -> torch.Tensor:
    """[2, 3, 1, 4, 1, 16] of one value for each chip."""
    return torch.tensor(values).view(*MESH, 1, 1, 1, 1).expand(-1, -1, 1, 4, 1, 16).bfloat16()


def test_chips_stay_together_while_they_write_the_same() -> None:
    keys = cache()
    alike.note_write(keys, rows(1, 1, 2, 1, 2, 2), EVERYONE)
    assert alike.of([keys], [EVERYONE]).first == (0, 0, 2, 0, 2, 2)
    alike.note_write(keys, rows(1, 1, 1, 1, 1, 1), EVERYONE)
    assert alike.of([keys], [EVERYONE]).first == (0, 0, 2, 0, 2, 2)  # what differed still does
    alike.note_write(keys, rows(1, 1, 1, 2, 1, 2), EVERYONE)
    assert alike.of([keys], [EVERYONE]).first == (0, 0, 2, 3, 2, 5)


def test_other_places_are_other_contents() -> None:
    keys = cache()
    assert alike.of([keys], [BY_COLUMN]).first == (0, 1, 2, 0, 1, 2)  # seen at other places
    alike.note_write(keys, rows(1, 1, 1, 1, 1, 1), EVERYONE, BY_COLUMN)
    assert alike.of([keys], [EVERYONE]).first == (0, 1, 2, 0, 1, 2)


def test_rows_that_chips_share_need_no_look() -> None:
    keys = cache()
    alike.note_write(keys, rows(1, 2, 3, 4, 5, 6)[:1], EVERYONE)
    assert alike.of([keys], [EVERYONE]).first == (0, 1, 2, 0, 1, 2)


def test_both_caches_must_agree_and_be_known() -> None:
    keys, values = cache(), cache()
    alike.note_write(keys, rows(1, 1, 1, 2, 2, 2), EVERYONE)
    alike.note_write(values, rows(1, 1, 2, 2, 2, 2), EVERYONE)
    assert alike.of([keys, values], [EVERYONE]).first == (0, 0, 2, 3, 3, 3)
    assert alike.of([keys, values.clone()], [EVERYONE]).first == (0, 1, 2, 3, 4, 5)


def test_chips_are_empty_while_they_write_zeros() -> None:
    keys, values = cache(), cache()
    assert alike.of([keys], [BY_COLUMN]).empty == set(range(6))
    alike.note_write(keys, rows(0, 1, 2, 0, 0, 2), BY_COLUMN)
    alike.note_write(values, rows(0, 1, 0, 0, 0, 0), EVERYONE)
    assert alike.of([keys, values], [BY_COLUMN]).empty == {0, 3, 4}
    alike.note_write(values, rows(0, 0, 0, 3, 0, 0), EVERYONE)
    known = alike.of([keys, values], [EVERYONE])
    assert known.empty == {0, 4}
    assert known.chain.tolist() == [[-1, 1, 2, 3, -1, 2], [-1, -1, 5, -1, -1, -1]]


@pytest.mark.skipif(native.library() is None, reason="no C compiler here")
@pytest.mark.parametrize("first", [(0, 0, 0), (0, 1, 1), (0, 1, 0)])
def test_shared_pages_are_read_once_with_the_same_result(first: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    users, heads, group, width, size, pages = 3, 2, 3, 64, 32, 2
    one = torch.randn(1, 1, 6, heads, size, width, generator=generator).bfloat16()
    other = torch.randn(1, 1, 6, heads, size, width, generator=generator).bfloat16()
    k = torch.cat([one if leader == 0 else other for leader in first], dim=1)
    q = torch.randn(1, 3, 1, users, heads * group, width, generator=generator).bfloat16()
    table = torch.randperm(6, generator=generator).view(1, 1, users, pages).int()
    where = (torch.tensor([39, -1, 39]).int().view(1, 1, users), table)
    empty = frozenset({2} if first == (0, 1, 0) else ())
    k[:, list(empty)] = 0
    q[:, 1, 0, :, 1] = q[:, 2, 0, :, 1] = 0  # heads that fill up a chip
    found = [
        attend(q, (k, k.flip(-1)), where, alike.Alike((1, 3), *chips), (0.1, None, 8, 8))
        for chips in ((first, empty), ((0, 1, 2), frozenset()))
    ]
    assert torch.equal(*found) and found[0].any()
