"""The C loops and their torch twins give the same, and nobody needs a compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.emulator import native
from backends.emulator.fidelity import cut
from backends.emulator.formats import round_to
from backends.emulator.ops import attention_decode
from backends.emulator.ops.paging import Reach
from backends.emulator.types import DataType
from backends.mesh import open_mesh
from tests.ops.emulated import get, put, ttnn

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here")


def without_c(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(native, "library", lambda: None)
        return run()


@needs_compiler
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


def on_device(run: Callable[[Any], Any]) -> torch.Tensor:
    with open_mesh("N150") as mesh:
        return get(run(mesh))


def norm(mesh: Any) -> Any:
    x = torch.randn(1, 1, 40, 96, generator=torch.Generator().manual_seed(1))
    weight = torch.rand(1, 1, 3, 32, generator=torch.Generator().manual_seed(2))
    return ttnn.rms_norm(put(mesh, x), epsilon=1e-5, weight=put(mesh, weight, rows=True))


def rotation(mesh: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 40, 64, generator=generator)
    angles = torch.randn(1, 1, 64, 32, generator=generator).repeat_interleave(2, dim=-1)
    turn = torch.zeros(1, 1, 32, 32)
    even = torch.arange(0, 32, 2)
    turn[..., even, even + 1], turn[..., even + 1, even] = 1, -1
    operands = [put(mesh, t) for t in (x, angles.cos(), angles.sin(), turn)]
    return ttnn.experimental.rotary_embedding_llama(*operands, is_decode_mode=False)


@needs_compiler
@pytest.mark.parametrize("run", [norm, rotation])
def test_ops_are_the_same_up_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], Any]
) -> None:
    fast, slow = on_device(run), without_c(monkeypatch, lambda: on_device(run))
    torch.testing.assert_close(fast, slow, rtol=2**-7, atol=2**-9)
    assert (fast == slow).float().mean() > 0.99  # sums in another order move few roundings


@needs_compiler
@pytest.mark.parametrize("dim", [0, 1])
def test_sums_over_chips_are_torchs(dim: int) -> None:
    x = torch.randn(3, 4, 1, 5, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    for part in (x, x[..., :9].contiguous(), x.float()):
        expected = part.double().sum(dim, keepdim=True)
        found = native.sum_over(part, dim).double()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@needs_compiler
def test_tiles_and_rows_are_put_where_they_belong() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 40, 3 * 32, generator=generator).bfloat16()
    index = torch.tensor([2, 0, 0, 1, 2])
    spread = native.spread_tiles(x, index, 1)
    assert torch.equal(spread[:2], x.unflatten(-1, (3, 32))[:, :, index].flatten(-2))
    assert spread.shape == (3, 40, 5 * 32) and not spread[2].any()
    table, places = torch.zeros(9, 64).bfloat16(), torch.tensor([7, 0, 4])
    rows = torch.randn(3, 64, generator=generator).bfloat16()
    native.put_rows(table, places, rows)
    assert torch.equal(table[places], rows) and table.any(1).sum() == 3


@needs_compiler
def test_matrices_share_tables_along_leading_dims_alone() -> None:
    x = torch.randn(3, 2, 4, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    cos, sin = torch.rand(1, 2, 1, 64).bfloat16(), torch.rand(1, 2, 1, 64).bfloat16()
    shared, own = native.rotate(x, cos, sin, 1), torch.empty_like(x)
    for at in range(3):
        own[at] = native.rotate(x[at], cos[0], sin[0], 1)
    assert shared is not None and torch.equal(shared, own)
    assert native.rotate(x, cos.repeat(3, 1, 1, 1)[:, :1].contiguous(), sin[:, :1], 1) is None


@needs_compiler
@pytest.mark.parametrize("bits", [None, 5])
@pytest.mark.parametrize(
    ("group", "width"), [(4, 32), (1, 64), (2, 64), (3, 64), (6, 64), (4, 128), (1, 256)]
)
def test_decode_attention_is_the_same_up_to_the_order_of_sums(
    group: int, width: int, bits: int | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    users, heads, pages, size = 3, 2, 3, 32
    q = torch.randn(users * heads, group, width, generator=generator) * width**-0.5  # scaled
    q[-1] = 0  # as of heads that only pad
    k, v = (
        torch.randn(1, 1, 20, heads, size, width, generator=generator).bfloat16() for _ in range(2)
    )
    rows = torch.randperm(20 * heads, generator=generator)[: users * heads * pages]
    length = pages * size
    ends = torch.tensor([1, 50, length]).view(-1, 1, 1)
    hidden = torch.zeros(users, 1, length).masked_fill_(torch.arange(length) >= ends, -torch.inf)
    idle = torch.tensor([False, True, False]).view(-1, 1, 1)
    seen = Reach(rows.view(users, heads, pages), length, hidden, idle)
    fast = attention_decode._attend(q, k, v, seen, bits)
    assert attention_decode._in_c(q, k, seen)
    slow = attention_decode._in_calls(q, k, v, seen, bits)
    active = ~idle.expand(users, heads, group * width).reshape(q.shape)
    torch.testing.assert_close(fast[active], slow[active], rtol=1e-5, atol=1e-5)
    assert not fast[~active].any()
    if bits is not None:  # and cutting is what makes the difference
        whole = attention_decode._in_calls(q, cut(k, 8), v, seen, None)
        assert not torch.allclose(whole[active], slow[active], rtol=1e-3, atol=1e-3)


def test_a_compiler_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.library.__wrapped__() is None
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    assert native.library.__wrapped__() is None


@needs_compiler
def test_processes_that_compile_at_once_all_get_the_library(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from backends.emulator import native; "
        f"native._SOURCE = pathlib.Path({str(tmp_path)!r}) / 'native.c'; "
        "sys.exit(native.library() is None)"
    )
    (tmp_path / "native.c").write_text(native._SOURCE.read_text())
    jobs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [job.wait(timeout=60) for job in jobs] == [0, 0, 0]
    assert len(list((tmp_path / "__pycache__").iterdir())) == 1
