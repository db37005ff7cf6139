"""Rows and pages by their numbers: every chip has its own table and numbers, or shares them."""

from __future__ import annotations

import pytest
import torch

from backends.emulator.kv import paging
from backends.emulator.loops.moves import gathered
from tests.ops.test_native import every_build, without_c


@every_build
@pytest.mark.parametrize("table_mesh", [(1, 1), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("users_mesh", [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_every_chip_finds_the_pages_of_its_own_users(
    monkeypatch: pytest.MonkeyPatch, table_mesh: tuple[int, int], users_mesh: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(4)
    table = torch.randint(-1, 8, (*table_mesh, 5, 4), generator=generator).int()
    users = torch.randint(5, (*users_mesh, 3), generator=generator).int()

    def find(own: torch.Tensor, count: int = 2) -> torch.Tensor:
        return paging.flat_blocks(table.clone(), own, mesh=(2, 3), blocks=8, count=count)

    for count in (1, 4, 9):
        slow = without_c(monkeypatch, lambda count=count: find(users, count))
        assert torch.equal(find(users, count), slow)
    for number in (5, -1):
        with pytest.raises((RuntimeError, IndexError)):
            find(torch.full_like(users, number))


@every_build
@pytest.mark.parametrize("table_mesh", [(1, 1), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("ids_mesh", [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_every_chip_picks_the_rows_of_its_own_table(
    table_mesh: tuple[int, int], ids_mesh: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(4)
    whole = torch.randn(*table_mesh, 9, 64, generator=generator).bfloat16()
    ids = torch.randint(9, (*ids_mesh, 5), generator=generator).int()
    mesh = torch.broadcast_shapes(table_mesh, ids_mesh)
    for table in (whole, whole[..., 16:48]):  # part of its columns, too
        found = gathered(table, ids)
        every, own = table.expand(*mesh, -1, -1), ids.long().expand(*mesh, -1)
        expected = every.gather(2, own[..., None].expand(*mesh, 5, table.shape[-1]))
        assert found is not None and torch.equal(found, expected)
    ids[0, 0, 3] = 9
    assert gathered(whole, ids) is None
