"""Caches: what is written where, what is left alone, and that replays see new positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from backends.mesh import open_mesh
from tests.ops.emulated import get, per_user, put, put_heads, ttnn
from tests.ops.golden_cases import operand

K, W, SIZE, PAGES = 2, 64, 32, 4
USERS, BLOCKS = 5, 24
OLD = operand(BLOCKS, K, SIZE, W, seed=1)
TABLE = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(2))
TABLE = TABLE[: USERS * PAGES].view(USERS, PAGES).to(torch.int32)
update = ttnn.experimental.paged_update_cache
fill = ttnn.experimental.paged_fill_cache


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with open_mesh("N150") as device:
        yield device


def expected(positions: list[int], new: torch.Tensor) -> torch.Tensor:
    """Written one by one: new [B, K, W]."""
    cache = OLD.clone()
    for user, at in enumerate(positions):
        if at >= 0:
            cache[TABLE[user, at // SIZE], :, at % SIZE] = new[user]
    return cache


@pytest.mark.parametrize("positions", [[100, 0, 31, 32, 127], [-1, 5, -1, 64, -1], [-1] * USERS])
def test_each_active_user_writes_one_position_of_its_pages(mesh: Any, positions: list[int]) -> None:
    new, cache = operand(1, USERS, K, W, seed=3), put(mesh, OLD)
    at = put(mesh, torch.tensor(positions, dtype=torch.int32))
    update(cache, put_heads(mesh, new), update_idxs_tensor=at, page_table=put(mesh, TABLE))
    assert torch.equal(get(cache), expected(positions, new[0]))


def test_a_user_without_a_page_writes_nothing(mesh: Any) -> None:
    table = TABLE.clone()
    table[1] = -1
    cache = put(mesh, OLD)
    at = put(mesh, torch.full((USERS,), 40, dtype=torch.int32))
    new = operand(1, USERS, K, W, seed=4)
    update(cache, put_heads(mesh, new), update_idxs_tensor=at, page_table=put(mesh, table))
    assert torch.equal(get(cache), expected([40, -1, 40, 40, 40], new[0]))


def test_a_row_of_a_dense_cache_belongs_to_one_user(mesh: Any) -> None:
    old, new = operand(USERS, K, 96, W, seed=5), operand(1, USERS, K, W, seed=6)
    cache = put(mesh, old)
    positions = torch.tensor([95, -1, 0, 3, 64], dtype=torch.int32)
    update(cache, put_heads(mesh, new), update_idxs_tensor=put(mesh, positions))
    for user, at in enumerate(positions.tolist()):
        if at >= 0:
            old[user, :, at] = new[0, user]
    assert torch.equal(get(cache), old)


def test_what_is_written_has_the_caches_format(mesh: Any) -> None:
    new = operand(1, USERS, K, W, seed=7)
    cache = ttnn.zeros([BLOCKS, K, SIZE, W], ttnn.bfloat8_b, ttnn.TILE_LAYOUT, mesh)
    at = put(mesh, torch.zeros(USERS, dtype=torch.int32))
    update(cache, put_heads(mesh, new), update_idxs_tensor=at, page_table=put(mesh, TABLE))
    rounded = get(ttnn.typecast(put(mesh, new), ttnn.bfloat8_b))
    assert torch.equal(get(cache)[TABLE[:, 0].long(), :, 0], rounded[0])
    assert not torch.equal(rounded, new)


@pytest.mark.parametrize("length", [128, 100, 1])
@pytest.mark.parametrize("size", [32, 64])
def test_prompts_fill_the_pages_of_their_users(mesh: Any, length: int, size: int) -> None:
    users = [3, 0]
    old = operand(BLOCKS, K, size, W, seed=8)
    new = operand(len(users), K, length, W, seed=9)
    cache = put(mesh, old)
    where = put(mesh, torch.tensor(users, dtype=torch.int32))
    fill(cache, put(mesh, new), put(mesh, TABLE), batch_idx_tensor=where)
    found = get(cache)
    wanted = old.clone()
    for prompt, user in zip(new, users, strict=True):
        for at in range(length):
            wanted[TABLE[user, at // size], :, at % size] = prompt[:, at]
    padding = -length % 32  # of the last tile: nobody attends to it
    for user in users:
        last = length - 1
        page, offset = TABLE[user, last // size], last % size + 1
        found[page, :, offset : offset + padding] = wanted[page, :, offset : offset + padding]
    assert torch.equal(found, wanted)


def test_pages_that_a_user_does_not_have_are_skipped(mesh: Any) -> None:
    table = TABLE.clone()
    table[2, 1:] = -1
    cache = put(mesh, OLD)
    new = operand(1, K, 96, W, seed=10)
    fill(cache, put(mesh, new), put(mesh, table), batch_idx=2)
    wanted = OLD.clone()
    wanted[TABLE[2, 0]] = new[0, :, :SIZE]
    assert torch.equal(get(cache), wanted)


def test_a_prompt_fills_one_row_of_a_dense_cache(mesh: Any) -> None:
    old, new = operand(USERS, K, 96, W, seed=11), operand(1, K, 64, W, seed=12)
    cache = put(mesh, old)
    ttnn.fill_cache(cache, put(mesh, new), 3)
    old[3, :, :64] = new[0]
    assert torch.equal(get(cache), old)


def test_replays_write_at_the_positions_of_that_moment(mesh: Any) -> None:
    new, cache = operand(1, USERS, K, W, seed=13), put(mesh, OLD)
    positions = put(mesh, torch.tensor([30, -1, 0, 5, 64], dtype=torch.int32))
    x, table = put_heads(mesh, new), put(mesh, TABLE)
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    update(cache, x, update_idxs_tensor=positions, page_table=table)
    ttnn.plus_one(positions, skip_negative_entries=True)
    ttnn.end_trace_capture(mesh, trace, cq_id=0)
    wanted = OLD.clone()
    for step in range(4):  # over the end of a page
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=True)
        now = [at + step if at >= 0 else -1 for at in (30, -1, 0, 5, 64)]
        written = expected(now, new[0])
        wanted = torch.where(written != OLD, written, wanted)
        assert torch.equal(get(cache), wanted)


def test_columns_of_a_mesh_hold_users_of_their_own() -> None:
    with open_mesh("T3K_2x4") as mesh:
        columns, users = 4, 2
        table = TABLE[:4].repeat(2, 1)[: columns * users]
        new = operand(1, columns * users, K, W, seed=14)
        positions = torch.tensor([3, -1, 40, 41, 0, 127, -1, -1], dtype=torch.int32)
        cache = ttnn.zeros([BLOCKS, K, SIZE, W], ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh)
        update(
            cache,
            put(mesh, new, memory=per_user(mesh, users, 32, W), dims=(None, 1)),
            update_idxs_tensor=put(mesh, positions, dims=(None, 0)),
            page_table=put(mesh, table, dims=(None, 0)),
        )
        for row in range(2):
            for column in range(columns):
                wanted = torch.zeros(BLOCKS, K, SIZE, W)
                for user in range(column * users, (column + 1) * users):
                    at = int(positions[user])
                    if at >= 0:
                        wanted[table[user, at // SIZE], :, at % SIZE] = new[0, user]
                assert torch.equal(get(cache, (row, column)), wanted)
