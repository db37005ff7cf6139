"""Rotary embedding: the usual transformation, any other one, prompts and decode steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from backends.emulator.loops.call import Call, listening
from backends.emulator.ops import rope
from backends.mesh import open_mesh
from models.layers.rope import Rotation
from models.plans.attention import RopePlan
from tests.ops.emulated import ROUNDED, get, per_user, put, put_heads, ttnn
from tests.ops.golden_cases import operand

WIDTH, LENGTH = 64, 40


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with open_mesh("N150") as device:
        yield device


def tables(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [n, W], neighbours alike, as bfloat16 holds them."""
    frequencies = 10_000.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    angles = (positions[:, None] * frequencies).repeat_interleave(2, dim=-1)
    return angles.cos().bfloat16().float(), angles.sin().bfloat16().float()


def usual() -> torch.Tensor:
    turn = torch.zeros(32, 32)
    even = torch.arange(0, 32, 2)
    turn[even, even + 1], turn[even + 1, even] = 1, -1
    return turn


def expected(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turn: torch.Tensor) -> Any:
    turned = (x.double().unflatten(-1, (-1, 32)) @ turn.double()).flatten(-2)
    return (x.double() * cos + turned * sin).float()


def turned(mesh: Any, x: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
    out = ttnn.experimental.rotary_embedding_llama(
        put(mesh, x), *(put(mesh, t[None, None]) for t in operands), is_decode_mode=False
    )
    return get(out)


def test_pairs_turn_by_their_angles(mesh: Any) -> None:
    x = operand(2, 3, LENGTH, WIDTH, seed=1)
    cos, sin = tables(torch.arange(LENGTH + 8))
    # as complex numbers, which know nothing of transformations
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    angles = torch.complex(cos.double(), sin.double())[:LENGTH, ::2]
    wanted = torch.view_as_real(pairs * angles).flatten(-2).float()
    torch.testing.assert_close(turned(mesh, x, cos, sin, usual()), wanted, **ROUNDED)


@pytest.mark.parametrize("odd", ["transformation", "tables"])
def test_what_is_not_usual_goes_by_the_matrix(mesh: Any, odd: str) -> None:
    x, (cos, sin), turn = (
        operand(1, 3, LENGTH, WIDTH, seed=1),
        tables(torch.arange(LENGTH)),
        usual(),
    )
    if odd == "tables":
        cos, sin = operand(LENGTH, WIDTH, seed=2), operand(LENGTH, WIDTH, seed=3)
    else:
        turn = operand(32, 32, seed=4)
    wanted = expected(x, cos, sin, turn)
    torch.testing.assert_close(turned(mesh, x, cos, sin, turn), wanted, rtol=2**-7, atol=2**-5)


def test_each_user_turns_by_its_own_position(mesh: Any) -> None:
    users, heads = 5, 3
    x = operand(1, users, heads, WIDTH, seed=5)
    cos, sin = tables(torch.tensor([7, 0, 31, 2, 7]))
    own = per_user(mesh, users, 32, WIDTH)
    turn = usual().repeat(users, 1)[None, None]
    out = ttnn.experimental.rotary_embedding_llama(
        put_heads(mesh, x),
        put(mesh, cos[None, :, None], memory=own),
        put(mesh, sin[None, :, None], memory=own),
        put(mesh, turn, memory=per_user(mesh, users, 32, 32)),
        is_decode_mode=True,
    )
    wanted = expected(x, cos[:, None], sin[:, None], usual())
    torch.testing.assert_close(get(out), wanted, **ROUNDED)


def test_a_replayed_rotation_follows_its_tables(mesh: Any) -> None:
    x = operand(1, 3, LENGTH, WIDTH, seed=6)
    device = [put(mesh, x)] + [
        put(mesh, t[None, None]) for t in (*tables(torch.arange(LENGTH)), usual())
    ]
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    out = ttnn.experimental.rotary_embedding_llama(*device, is_decode_mode=False)
    ttnn.end_trace_capture(mesh, trace, cq_id=0)
    for start in (0, 100):
        now = tables(torch.arange(start, start + LENGTH))
        for tensor, values in zip(device[1:3], now, strict=True):
            host = ttnn.from_torch(values[None, None], dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)
            ttnn.copy_host_to_device_tensor(host, tensor)
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=True)
        torch.testing.assert_close(get(out), expected(x, *now, usual()), **ROUNDED)


@pytest.mark.parametrize(("heads", "rows"), [(8, 64), (3, 32)])
def test_heads_below_each_other_turn_as_heads_side_by_side(
    mesh: Any, heads: int, rows: int
) -> None:
    """And the plan says so only where that is sooner: not of long or many prompts."""
    cos, sin = (put(mesh, table[None, None]) for table in tables(torch.arange(rows)))
    turn = put(mesh, usual()[None, None])
    q, k = (put(mesh, operand(1, n, rows, WIDTH, seed=n)) for n in (heads, 1))
    plain = Rotation(cos, sin, turn, decode=False)
    folded = Rotation(
        *(ttnn.concat([table] * heads, dim=2) for table in (cos, sin)), turn, decode=False,
        folded=True,
    )  # fmt: skip
    for one, other in zip(plain(q, k), folded(q, k), strict=True):
        assert torch.equal(get(one), get(other))
    plan = RopePlan(False, None, 1, 1, None, None, heads=heads, most_cores=64)
    assert plan.folds(1, rows) and not plan.folds(2, rows) and not plan.folds(1, 64 * 32)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("users", [1, 3])
def test_heads_turn_where_they_lie_in_a_projection(users: int) -> None:
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(2, 4, users, 40, 5 * 64, generator=generator).bfloat16()  # 3 of q, k, v
    cos, sin = (torch.randn(1, 1, 1, 64, 64, generator=generator).bfloat16() for _ in range(2))
    for first, count in ((0, 3), (3, 1)):
        heads = whole.unflatten(-1, (5, 64))[..., first : first + count, :].transpose(-2, -3)
        calls: list[Call] = []
        with listening(calls.append):
            found = rope.rotate(heads, cos, sin, 40)
        assert [call.name for call in calls] == ["rotate"]
        expected = rope.rotate(heads.contiguous(), cos, sin, 40)
        assert found is not None and expected is not None
        assert torch.equal(found, expected) and found.is_contiguous()
