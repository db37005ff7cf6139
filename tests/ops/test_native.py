"""The C loops and their torch twins give the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from backends.emulator.api.types import DataType
from backends.emulator.kv import alike, paging
from backends.emulator.kv.paging import reach
from backends.emulator.loops import native
from backends.emulator.loops.call import call
from backends.emulator.numerics import formats, sums
from backends.emulator.numerics.fidelity import cut
from backends.emulator.numerics.formats import MANTISSA_BITS, finish, round_columns, round_to
from backends.emulator.numerics.sums import sum_over
from backends.emulator.ops import attention, attention_decode, reduction, rope
from backends.mesh import open_mesh
from tests.ops.emulated import get, per_user, put, ttnn

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here")
every_build = pytest.mark.usefixtures("build")


def without_c(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(native, "library", lambda: None)
        return run()


@every_build
@pytest.mark.parametrize("dtype", [DataType.BFLOAT8_B, DataType.BFLOAT4_B])
@pytest.mark.parametrize("carrier", [torch.bfloat16, torch.float32])
def test_rounding_is_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: DataType, carrier: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(1 << 16, generator=generator) * 12
    x = torch.randn(1 << 16, generator=generator) * spread.exp2()
    ties = torch.randint(-256, 256, (1 << 12,), generator=generator) / 2
    nasty = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-39, 3e38, 1.0] * 4)
    x = torch.cat([x, ties, nasty, torch.zeros(16), torch.full((16,), 2.0**-120)]).to(carrier)
    fast = round_to(x, dtype)
    slow = without_c(monkeypatch, lambda: round_to(x, dtype))
    known = ~slow.isnan()
    assert torch.equal(fast.view(torch.int16)[known], slow.view(torch.int16)[known])
    assert torch.equal(fast.isnan(), slow.isnan())


@every_build
@pytest.mark.parametrize("bits", [7, 3])
@pytest.mark.parametrize("carrier", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [16, 400])
def test_the_hosts_conversion_down_columns_is_the_same_to_the_bit(
    bits: int, carrier: torch.dtype, width: int
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 16, width, generator=generator)
    x *= (torch.randn(8, 16, 1, generator=generator) * 8).exp2()  # many bits are shifted out
    x[0, :, 0], x[1, :, 1] = 0, torch.arange(-8, 8) / 2
    x[2, 3] = -0.0
    x = x.to(carrier)
    fast = round_columns(x, bits)
    slow = formats._by_piece(x, bits, formats._round_exactly)
    assert fast is not None and torch.equal(fast.view(torch.int16), slow.view(torch.int16))
    for odd in (torch.nan, torch.inf, 3e38):
        x[5, 5, 5] = odd
        assert round_columns(x, bits) is None  # by the rule in integers
    x[5, :, 5] = 1e-36
    assert round_columns(x, bits) is None
    assert round_columns(x[..., :9].contiguous(), bits) is None


def on_device(run: Callable[[Any], Any]) -> torch.Tensor:
    with open_mesh("N150") as mesh:
        return get(run(mesh))


def norm(mesh: Any) -> Any:
    x = torch.randn(1, 1, 40, 96, generator=torch.Generator().manual_seed(1))
    weight = torch.rand(1, 1, 3, 32, generator=torch.Generator().manual_seed(2))
    return ttnn.rms_norm(put(mesh, x), epsilon=1e-5, weight=put(mesh, weight, rows=True))


def norm_without_weight(mesh: Any) -> Any:
    x = torch.randn(1, 1, 40, 96, generator=torch.Generator().manual_seed(1))
    return ttnn.rms_norm(put(mesh, x), epsilon=1e-5)


def norm_by_sums(mesh: Any) -> Any:
    x = put(mesh, torch.randn(1, 1, 40, 96, generator=torch.Generator().manual_seed(1)))
    weight = torch.rand(1, 1, 3, 32, generator=torch.Generator().manual_seed(2))
    sums = ttnn.rms_norm_pre_all_gather(x)
    sums = ttnn.concat([sums, sums], dim=3)  # as if two chips had gathered theirs
    return ttnn.rms_norm_post_all_gather(x, sums, epsilon=1e-5, weight=put(mesh, weight, rows=True))


def norm_in_blocks(mesh: Any) -> Any:
    x = put(mesh, torch.randn(1, 1, 40, 96, generator=torch.Generator().manual_seed(1)))
    sums = ttnn.rms_norm_pre_all_gather(x)
    return ttnn.rms_norm_post_all_gather(x, sums, epsilon=1e-5, dtype=ttnn.bfloat8_b)


def gated_product(mesh: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    gate, up = (torch.randn(1, 1, 40, 320, generator=generator) * 4 for _ in range(2))
    gate[:, :, 5:9], up[:, :, 5:8] = gate[:, :, 4], up[:, :, 4]  # idle users, and one like them
    return ttnn.mul(
        put(mesh, gate), put(mesh, up), dtype=ttnn.bfloat16,
        input_tensor_a_activations=[ttnn.UnaryOpType.SILU],
    )  # fmt: skip


def rotation(mesh: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 40, 64, generator=generator)
    angles = torch.randn(1, 1, 64, 32, generator=generator).repeat_interleave(2, dim=-1)
    turn = torch.zeros(1, 1, 32, 32)
    even = torch.arange(0, 32, 2)
    turn[..., even, even + 1], turn[..., even + 1, even] = 1, -1
    operands = [put(mesh, t) for t in (x, angles.cos(), angles.sin(), turn)]
    return ttnn.experimental.rotary_embedding_llama(*operands, is_decode_mode=False)


@every_build
@pytest.mark.parametrize(
    "run", [norm, norm_without_weight, norm_by_sums, norm_in_blocks, gated_product, rotation]
)
def test_ops_are_the_same_up_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], Any]
) -> None:
    fast, slow = on_device(run), without_c(monkeypatch, lambda: on_device(run))
    torch.testing.assert_close(fast, slow, rtol=2**-7, atol=2**-9)
    assert (fast == slow).float().mean() > 0.99  # sums in another order move few roundings


@every_build
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [DataType.BFLOAT16, DataType.BFLOAT8_B])
@pytest.mark.parametrize("parts", [1, 2])
def test_sums_over_chips_are_torchs(axis: int, dtype: DataType, parts: int) -> None:
    x = torch.randn(3, 4, 1, 5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = finish(x.double().sum(axis, keepdim=True).float(), dtype)
    dealt = torch.cat(expected.split(64 // parts, dim=-1), dim=axis)
    found = sum_over(x, axis, MANTISSA_BITS.get(dtype, 0), parts=parts)
    assert found is not None and torch.equal(found, dealt)
    assert sum_over(x.float(), axis, 0) is None
    assert sum_over(x[..., :9].contiguous(), axis, 0) is None


@every_build
@pytest.mark.parametrize("dtype", [DataType.BFLOAT16, DataType.BFLOAT4_B])
@pytest.mark.parametrize("paged", [True, False])
def test_positions_are_put_where_they_belong(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, paged: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(1, 40, 2, 32, generator=generator)
    positions = torch.randint(-1, 32 * (4 if paged else 1), (40,), generator=generator)
    table = torch.randperm(180, generator=generator)[:160].view(40, 4)
    table[7] = -1

    def run(mesh: Any) -> Any:
        zeros = torch.zeros(180 if paged else 40, 2, 32, 32)
        cache = put(mesh, zeros, getattr(ttnn, dtype.name.lower()))
        x = put(mesh, rows, memory=per_user(mesh, 40, 32, 32))
        ttnn.experimental.paged_update_cache(
            cache, x, update_idxs_tensor=put(mesh, positions),
            **({"page_table": put(mesh, table)} if paged else {}),
        )  # fmt: skip
        return cache

    fast = on_device(run)
    assert torch.equal(fast, without_c(monkeypatch, lambda: on_device(run)))
    assert (
        fast.any(-1).sum() == 2 * ((positions >= 0) & (table[:, 0] >= 0 if paged else True)).sum()
    )


@every_build
@pytest.mark.parametrize(
    ("positions", "page", "message"),
    [((3, 64), 5, "position 64 lies beyond"), ((3, 33), 8, "names page 8, the cache has 8")],
)
def test_memory_beyond_a_cache_is_neither_read_nor_written(
    monkeypatch: pytest.MonkeyPatch, positions: tuple[int, ...], page: int, message: str
) -> None:
    at = torch.tensor(positions, dtype=torch.int32).view(1, 1, 2)
    table = torch.tensor([[0, 99], [1, page]], dtype=torch.int32).view(1, 1, 2, 2)  # 99: unused
    for check in (paging.check_where, without_c):
        run = lambda: paging.check_where(at.clone(), table, blocks=8, size=32)  # noqa: E731
        with pytest.raises(RuntimeError, match=message):
            run() if check is not without_c else without_c(monkeypatch, run)
    paging.check_where(at.clamp(max=40), table.clamp(max=7), blocks=8, size=32)
    with pytest.raises(RuntimeError, match="names page 9"):
        users = torch.zeros(1, 1, 1, dtype=torch.int32)
        paging.flat_blocks(table + 9, users, mesh=(1, 1), blocks=8, count=1)


@every_build
def test_loops_refuse_what_they_would_misread() -> None:
    x, out = torch.zeros(4, 32).bfloat16(), torch.zeros(4, 32).bfloat16()
    given: dict[str, Any] = {"x": x, "out": out, "rows": 4, "width": 32}
    assert call("sum_squares", **given)
    for wrong in ({"x": x.float()}, {"x": x.T}, {"rows": 5}, {"out": out[:2]}, {"x": None}):
        with pytest.raises(AssertionError, match="sum_squares"):
            call("sum_squares", **given | wrong)


@every_build
@pytest.mark.parametrize("skips", [True, False])
def test_integers_are_added_as_torch_adds_them(
    monkeypatch: pytest.MonkeyPatch, skips: bool
) -> None:
    x = torch.tensor([0, 5, -1, 2**31 - 1, -(2**31), 7, 8], dtype=torch.int32)
    for y in (None, x.flip(0)):
        fast = sums.add_integers(x, y, skips_negative=skips)
        slow = without_c(monkeypatch, lambda y=y: sums.add_integers(x, y, skips_negative=skips))
        assert torch.equal(fast, slow)


@every_build
@pytest.mark.parametrize("width", [70, 1000])
def test_the_largest_come_first_and_equal_ones_in_their_order(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    x = torch.randn(3, 2, 1, width, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[0] = x[0].round()  # many are equal
    x[1, 0, 0, 5], x[1, 1] = torch.inf, -torch.inf
    x[0, 1], x[2, 1] = x[0, 0], x[2, 0]  # as those of idle users
    for k in (1, 32, 64, 70):
        fast = reduction.largest_first(x, k)
        slow = without_c(monkeypatch, lambda k=k: reduction.largest_first(x, k))
        assert torch.equal(fast[0], slow[0]) and torch.equal(fast[1], slow[1])
    part = reduction._by_loop(x[..., 10:], 32)  # of rows that lie further apart
    assert part is not None and torch.equal(
        part[1], reduction.largest_first(x[..., 10:].clone(), 32)[1]
    )
    x[2, 1, 0, 69] = torch.nan
    assert reduction._by_loop(x, 3) is None and reduction.largest_first(x, 3)[0][2, 1].isnan().any()


@every_build
def test_matrices_share_tables_along_leading_dims_alone() -> None:
    x = torch.randn(3, 2, 4, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    cos, sin = torch.rand(1, 2, 1, 64).bfloat16(), torch.rand(1, 2, 1, 64).bfloat16()
    shared, own = rope.rotate(x, cos, sin, 1), torch.empty_like(x)
    for at in range(3):
        own[at] = rope.rotate(x[at], cos[0], sin[0], 1)
    assert shared is not None and torch.equal(shared, own)
    assert rope.rotate(x, cos.repeat(3, 1, 1, 1)[:, :1].contiguous(), sin[:, :1], 1) is None


@every_build
@pytest.mark.parametrize(("bits", "window"), [(None, None), (5, 40)])
@pytest.mark.parametrize(
    ("group", "width"), [(4, 32), (1, 64), (2, 64), (3, 64), (6, 64), (4, 128), (1, 256)]
)
def test_decode_attention_is_the_same_up_to_the_order_of_sums(
    group: int, width: int, bits: int | None, window: int | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    users, heads, pages, size = 3, 2, 3, 32
    q = torch.randn(1, 1, 1, users, heads * group, width, generator=generator).bfloat16()
    q[..., -group:, :] = 0  # as of heads that only pad
    k, v = (
        torch.randn(1, 1, 20, heads, size, width, generator=generator).bfloat16() for _ in range(2)
    )
    table = torch.randperm(20, generator=generator)[: users * pages].int()
    where = (torch.tensor([0, -1, 71]).int().view(1, 1, -1), table.view(1, 1, users, pages))
    assert attention_decode._in_c(q, k, where)
    scale, alone = width**-0.5, alike.Alike((1, 1), (0,))
    how = (scale, window, bits or 8, bits or 8)
    fast = attention_decode.attend(q, (k, v), where, alone, how)
    seen = reach(*where, mesh=(1, 1), blocks=20, heads=heads, size=size, window=window)

    def in_calls(bits: int | None) -> torch.Tensor:
        queries = (cut(q, bits).float() * scale).view(users * heads, group, width)
        return attention_decode._in_calls(queries, k, v, seen, bits).view(q.shape)

    slow = in_calls(bits)
    torch.testing.assert_close(fast, slow.bfloat16(), rtol=2**-7, atol=1e-5)
    assert not fast[:, :, :, 1].any() and fast[:, :, :, 0].any()
    if bits is not None:  # and cutting is what makes the difference
        assert not torch.allclose(in_calls(None), slow, rtol=1e-2, atol=1e-2)


def exact_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, start: int = 0,
    window: int | None = None, causal: bool = True,
) -> torch.Tensor:  # fmt: skip
    """In float64."""
    at = torch.arange(start, start + q.shape[2])[:, None]
    keys = torch.arange(k.shape[2])
    seen = (keys <= at) & (keys > at - (window or len(keys))) if causal else keys >= 0 * at
    groups = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(groups, 1) for x in (k, v))
    scores = (q.double() @ k.mT * scale).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


PROMPTS = [(50, 50, {}), (70, 70, {"causal": False}), (33, 133, {"start": 100, "window": 40})]


@every_build
@pytest.mark.parametrize(("length", "total", "options"), PROMPTS)
@pytest.mark.parametrize("width", [32, 64, 96])
def test_attention_of_prompts_is_as_near_to_exact_as_rounding_its_result_once(
    length: int, total: int, options: dict[str, Any], width: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 6, length, width, generator=generator).bfloat16()
    k, v = (torch.randn(2, 2, total, width, generator=generator).bfloat16() for _ in range(2))
    k *= torch.logspace(-2, 1, total)[:, None]  # keys and values of all sizes, scores up to 50
    v *= torch.logspace(2, -8, total)[torch.randperm(total, generator=generator)][:, None]
    v[:, :, 2] = 0
    q[0, 1], q[1, 3:5] = 0, -0.0  # padding among heads
    found = attention.attend_prompt(q, k, v, scale=width**-0.5, **options)
    assert found is not None
    exact = exact_attention(q, k, v, scale=width**-0.5, **options)
    size = exact.norm(dim=-1, keepdim=True)  # errors are relative to what each query finds
    wrong, rounding = ((x - exact) / size for x in (found, exact.bfloat16()))
    assert wrong.square().mean().sqrt() < 1.05 * rounding.square().mean().sqrt()
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=float(size.max()) * 2**-12)


@every_build
def test_attention_of_prompts_leaves_what_is_beyond_its_integers_to_others() -> None:
    x = torch.ones(1, 1, 40, 32).bfloat16()
    assert attention.attend_prompt(x, x, x, scale=1.0) is not None
    for at, wrong in itertools.product(range(3), (torch.nan, torch.inf, -torch.inf, 1e30)):
        operands = [x, x, x]
        operands[at] = x.clone()
        operands[at][0, 0, 7, 5] = wrong
        assert attention.attend_prompt(*operands, scale=1.0) is None
    tiny = attention.attend_prompt(x, x, x * 1e-30, scale=1.0)
    assert tiny is not None and not tiny.any()
