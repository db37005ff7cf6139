"""Look-ups, maxima and draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import stats

from backends.mesh import open_mesh
from tests.ops.emulated import get, put, ttnn
from tests.ops.golden_cases import operand
from tests.ops.model_golden_cases import operands
from tests.ops.wheel_model_ops import answers

LOGITS = operands()["logits"]  # [1, 1, 8, 512] with equal values
USERS = 32


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with open_mesh("N150") as device:
        yield device


def test_values_equal_the_wheels_golden_functions(mesh: Any) -> None:
    o, goldens = operands(), answers()["goldens"]
    assert torch.equal(get(ttnn.topk(put(mesh, LOGITS), 32)[0]), goldens["topk"])
    assert torch.equal(get(ttnn.argmax(put(mesh, LOGITS), dim=-1)), goldens["argmax"])
    table = put(mesh, o["vocabulary"], rows=True)
    found = ttnn.embedding(put(mesh, o["ids"], ttnn.uint32), table)
    assert torch.equal(get(found), goldens["embedding"])


@pytest.mark.parametrize("equals", ["some", "many", "all"])
def test_of_equal_values_the_first_come_first(mesh: Any, equals: str) -> None:
    values = {
        "some": LOGITS,
        "many": (operand(1, 1, 8, 512, seed=1) > 1).float(),
        "all": torch.zeros(1, 1, 8, 512),
    }[equals]
    found, places = ttnn.topk(put(mesh, values), 32)
    wanted = values.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(get(found), wanted.values[..., :32])
    assert torch.equal(get(places), wanted.indices[..., :32].float())
    assert torch.equal(get(ttnn.argmax(put(mesh, values), dim=-1)), wanted.indices[..., 0].float())


def test_each_column_of_a_mesh_looks_up_ids_of_its_own() -> None:
    table, ids = operand(1, 1, 50, 128, seed=2), torch.tensor([[3, 49, 0, 7]], dtype=torch.int32)
    with open_mesh("T3K_2x4") as grid:
        out = ttnn.embedding(
            put(grid, ids, ttnn.uint32, dims=(None, 1)),
            put(grid, table, rows=True, dims=(3, None)),
        )
        for row in range(2):
            for column in range(4):
                half = table[0, 0, ids[0, column]].chunk(2)[row]
                assert torch.equal(get(out, (row, column))[0, 0], half)


class Draws:
    """The sampling op on the same logits [W] for all users."""

    def __init__(self, mesh: Any, logits: torch.Tensor, *, k: int, p: float, heat: float) -> None:
        width = len(logits)
        indices = torch.arange(width, dtype=torch.int32) + 1000
        self.operands = [
            put(mesh, logits.expand(1, 1, USERS, -1).contiguous()),
            put(mesh, indices.expand(1, 1, USERS, -1).contiguous()),
        ]
        self.settings = {
            "k": put(mesh, torch.full((USERS,), k, dtype=torch.int32), ttnn.uint32),
            "p": put(mesh, torch.full((USERS,), p), rows=True),
            "temp": put(mesh, torch.full((USERS,), 1 / heat), rows=True),
        }

        self.mesh = mesh

    def seed(self, *seeds: int) -> None:
        """Start each user's random numbers by a seed of its own."""
        values = torch.tensor(seeds, dtype=torch.int32)
        users = torch.arange(len(seeds), dtype=torch.int32)
        ttnn.manual_seed(
            put(self.mesh, values, ttnn.uint32), user_ids=put(self.mesh, users, ttnn.uint32)
        )

    def __call__(self, seed: int | None = None) -> torch.Tensor:
        out = ttnn.sampling(*self.operands, **self.settings, seed=seed)
        return get(out).flatten().long() - 1000


def test_k_1_or_p_0_takes_the_best(mesh: Any) -> None:
    logits = operand(32, seed=3)
    for k, p in ((1, 1.0), (32, 0.0)):
        found = Draws(mesh, logits, k=k, p=p, heat=1.0)(seed=1)
        assert (found == logits.argmax()).all()


def test_a_users_seed_repeats_its_draws_in_any_slot(mesh: Any) -> None:
    draws = Draws(mesh, torch.zeros(32), k=32, p=1.0, heat=1.0)
    draws.seed(*range(USERS))
    first, second = draws(), draws()
    draws.seed(*reversed(range(USERS)))
    assert torch.equal(draws().flip(0), first) and torch.equal(draws().flip(0), second)
    assert not torch.equal(first, second)
    assert len(first.unique()) > 8


def test_one_seed_for_all_makes_all_users_draw_alike_as_on_the_chip(mesh: Any) -> None:
    draws = Draws(mesh, torch.zeros(32), k=32, p=1.0, heat=1.0)
    assert len(draws(seed=5).unique()) == len(draws().unique()) == 1
    ttnn.manual_seed(5, device=mesh)
    again = draws()
    assert torch.equal(draws(seed=5), again)


@pytest.mark.parametrize(("k", "p", "heat"), [(32, 1.0, 1.0), (5, 1.0, 1.5), (32, 0.75, 0.5)])
def test_draws_follow_the_distribution(mesh: Any, k: int, p: float, heat: float) -> None:
    logits = operand(32, seed=7)
    draws = Draws(mesh, logits, k=k, p=p, heat=heat)
    counts = torch.zeros(32, dtype=torch.long)
    draws.seed(*range(11, 11 + USERS))
    for _ in range(200):
        counts += draws().bincount(minlength=32)
    order = logits.argsort(descending=True)[:k]
    inverse = float(torch.tensor(1 / heat).bfloat16())
    chances = torch.softmax(logits[order].double() * inverse, -1)
    before = chances.cumsum(-1) - chances
    chances = chances[before < p]  # the fewest that reach p
    assert not counts[order[len(chances) :]].any()
    wanted = chances / chances.sum() * counts.sum()
    assert counts[order[: len(chances)]].sum() == counts.sum() == 200 * USERS
    assert stats.chisquare(counts[order[: len(chances)]], wanted).pvalue > 1e-3


def test_users_have_settings_of_their_own(mesh: Any) -> None:
    draws = Draws(mesh, torch.zeros(32), k=32, p=1.0, heat=1.0)
    k = torch.ones(USERS, dtype=torch.int32)
    k[::2] = 32
    draws.settings["k"] = put(mesh, k, ttnn.uint32)
    draws.seed(*range(USERS))
    found = torch.stack([draws() for _ in range(20)])
    assert not found[:, 1::2].any()
    assert (found[:, ::2] > 0).any(dim=0).all()


def test_tokens_can_be_drawn_into_a_tensor_again_and_again(mesh: Any) -> None:
    draws = Draws(mesh, torch.zeros(32), k=32, p=1.0, heat=1.0)
    tokens = put(mesh, torch.zeros(1, 1, 1, USERS, dtype=torch.int32), ttnn.uint32)
    draws(seed=3)
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    ttnn.sampling(*draws.operands, **draws.settings, output_tensor=tokens)
    ttnn.end_trace_capture(mesh, trace, cq_id=0)
    found = []
    for _ in range(2):
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=True)
        found.append(get(tokens).clone())
    assert not torch.equal(*found)
    assert all((row >= 1000).all() and (row < 1032).all() for row in found)
