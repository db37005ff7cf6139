"""Products: fidelities, accumulators, meshes, kernels (test_golden.py compares with the wheel)."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import backends
from backends.device_specs import SPECS
from backends.emulator.api.types import DataType
from backends.emulator.loops import native
from backends.emulator.loops.call import Call, listening, made
from backends.emulator.numerics import at_once, kernels
from backends.emulator.numerics.formats import to_format
from backends.emulator.numerics.kernels import KERNELS
from backends.emulator.numerics.products import MeshWeight, Rounding
from backends.emulator.numerics.sums import side_by_side, sum_over
from backends.emulator.numerics.tiles import Tiles, store_of
from backends.mesh import open_mesh
from models.plans.matmul import prefill_linear
from models.precision import Precision
from tests.ops.golden_cases import operand

backends.select("emulator")
ttnn: Any = backends.ttnn


@pytest.fixture(scope="module")
def n150() -> Any:
    with open_mesh("N150") as device:
        yield device


def config(fidelity: str = "HiFi4", *, wide: bool = True) -> Any:
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity[fidelity], fp32_dest_acc_en=wide
    )


def put(values: torch.Tensor, device: Any, dtype: Any = None, **options: Any) -> Any:
    return ttnn.from_torch(
        values, dtype=dtype or ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=device, **options
    )


def exact_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x.double() @ w.double()).float()


@pytest.mark.parametrize("weight_type", ["bfloat16", "bfloat8_b", "bfloat4_b"])
def test_full_fidelity_is_exact_up_to_one_rounding(weight_type: str, n150: Any) -> None:
    x, w = operand(1, 1, 32, 256, seed=1), operand(1, 1, 256, 64, seed=2)
    weight = put(w, n150, getattr(ttnn, weight_type))
    out = ttnn.matmul(put(x, n150), weight, dtype=ttnn.float32, compute_kernel_config=config())
    stored = ttnn.to_torch(weight).float()
    torch.testing.assert_close(ttnn.to_torch(out), exact_product(x, stored), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("types", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_float32_operands_are_multiplied_as_tf32(types: tuple[str, str], n150: Any) -> None:
    x, w = torch.randn(1, 1, 32, 64), torch.randn(1, 1, 64, 32)
    a, b = (put(v, n150, getattr(ttnn, t)) for v, t in zip((x, w), types, strict=True))
    out = ttnn.to_torch(ttnn.matmul(a, b, compute_kernel_config=config())).float()
    seen = [cut(ttnn.to_torch(t).float(), bits) for t, bits in ((a, 11), (b, 10))]
    torch.testing.assert_close(out, exact_product(*seen), rtol=2**-7, atol=1e-4)


def cut(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Truncation to significant bits, by arithmetic."""
    exponent = torch.floor(torch.log2(x.abs().clamp(min=1e-30)))
    step = 2.0 ** (exponent - bits + 1)
    return torch.trunc(x / step) * step


def test_each_fidelity_multiplies_the_bits_of_its_passes(n150: Any) -> None:
    x, w = operand(1, 1, 32, 64, seed=3), operand(1, 1, 64, 32, seed=4)
    low_x, low_w = x - cut(x, 7), w - cut(w, 5)
    passes = [
        exact_product(cut(x, 7), cut(w, 5)),
        exact_product(cut(x, 7), low_w),
        exact_product(low_x, cut(w, 5)),
        exact_product(low_x, low_w),
    ]
    errors = []
    for count, fidelity in ((1, "LoFi"), (2, "HiFi2"), (3, "HiFi3"), (4, "HiFi4")):
        out = ttnn.matmul(
            put(x, n150), put(w, n150), dtype=ttnn.float32, compute_kernel_config=config(fidelity)
        )
        found = ttnn.to_torch(out)
        torch.testing.assert_close(found, sum(passes[:count]), rtol=1e-5, atol=1e-5)
        errors.append((found - exact_product(x, w)).abs().mean().item())
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_block_formats_lose_nothing_in_passes_that_see_all_their_bits(n150: Any) -> None:
    x, w = operand(1, 1, 32, 64, seed=5), operand(1, 1, 64, 32, seed=6)
    x8, w4, w8 = put(x, n150, ttnn.bfloat8_b), put(w, n150, ttnn.bfloat4_b), put(w, n150, ttnn.bfloat8_b)  # fmt: skip  # noqa: E501

    def product(a: Any, b: Any, fidelity: str) -> torch.Tensor:
        return ttnn.to_torch(ttnn.matmul(a, b, compute_kernel_config=config(fidelity)))

    assert torch.equal(product(x8, w4, "LoFi"), product(x8, w4, "HiFi4"))
    assert torch.equal(product(x8, w8, "HiFi2"), product(x8, w8, "HiFi4"))
    assert not torch.equal(product(x8, w8, "LoFi"), product(x8, w8, "HiFi4"))


def test_a_narrow_accumulator_rounds_the_result_to_bfloat16(n150: Any) -> None:
    x, w = put(operand(1, 1, 32, 64, seed=7), n150), put(operand(1, 1, 64, 32, seed=8), n150)
    wide = ttnn.matmul(x, w, dtype=ttnn.float32, compute_kernel_config=config())
    narrow = ttnn.matmul(x, w, dtype=ttnn.float32, compute_kernel_config=config(wide=False))
    assert torch.equal(ttnn.to_torch(narrow), ttnn.to_torch(wide).bfloat16().float())


@pytest.mark.parametrize("rows", [1, 8, 32])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_gives_the_same_product(kernel: str, rows: int) -> None:
    x = operand(1, rows, 192, seed=9).bfloat16()
    matrix = operand(160, 192, seed=10)
    multiply = KERNELS[kernel]
    out = multiply.run(x, multiply.make(matrix.bfloat16(), rows))
    expected = exact_product(x.float(), matrix.T)
    error = (out.float() - expected).abs()
    # the sum's own rounding, and half a unit in the last place where the result is bfloat16
    ulp = 2.0 ** (torch.floor(torch.log2(expected.abs())) - 7)
    assert (error <= 2e-5 + (ulp / 2 if out.dtype is torch.bfloat16 else 0)).all()


MESH_CUTS = [(None, None), (None, -1), (-2, None), (-2, -1), (-1, -2), (-1, None)]


@pytest.mark.parametrize("x_dims", [(None, None), (-1, None), (None, -1), (-2, -1)])
@pytest.mark.parametrize("w_dims", MESH_CUTS)
def test_a_mesh_multiplies_like_its_chips_one_by_one(
    x_dims: tuple[int | None, int | None], w_dims: tuple[int | None, int | None]
) -> None:
    with open_mesh("T3K_2x4") as mesh:
        shape = tuple(mesh.shape)
        x = torch.randn(1, 1, 16, 64, generator=torch.Generator().manual_seed(11))
        cuts = [1, 1]  # of K
        for axis in (0, 1):
            cuts[axis] = shape[axis] if x_dims[axis] == -1 else 1
        k = 64 // (cuts[0] * cuts[1])
        w_cuts = [shape[axis] if w_dims[axis] == -2 else 1 for axis in (0, 1)]
        w = torch.randn(
            1, 1, k * w_cuts[0] * w_cuts[1], 64, generator=torch.Generator().manual_seed(12)
        )
        x_mesh = put(x, mesh, mesh_mapper=ttnn.ShardTensor2dMesh(mesh, shape, x_dims))
        w_mesh = put(w, mesh, mesh_mapper=ttnn.ShardTensor2dMesh(mesh, shape, w_dims))
        out = ttnn.matmul(x_mesh, w_mesh, compute_kernel_config=config())
        parts = zip(*map(ttnn.get_device_tensors, (x_mesh, w_mesh, out)), strict=True)
        for own_x, own_w, own_out in parts:
            expected = exact_product(ttnn.to_torch(own_x).float(), ttnn.to_torch(own_w).float())
            torch.testing.assert_close(
                ttnn.to_torch(own_out).float(), expected, rtol=2**-7, atol=1e-4
            )


@pytest.mark.parametrize("weight_type", ["bfloat16", "bfloat8_b", "bfloat4_b"])
def test_a_row_alone_is_multiplied_as_it_is_among_many(weight_type: str, n150: Any) -> None:
    """To the last digit: a near tie would else be decided by who else is in the batch.

    Every term is there with either sign: what is left is what rounding in this order leaves.
    """
    order = torch.randperm(512, generator=torch.Generator().manual_seed(21))
    half, columns = operand(1, 1, 48, 256, seed=19), operand(1, 1, 256, 192, seed=20)
    x = torch.cat([half, half], dim=-1)[..., order].bfloat16()
    signed = torch.cat([columns, -columns], dim=-2)[..., order, :]
    w = put(signed, n150, getattr(ttnn, weight_type))
    together = ttnn.to_torch(ttnn.linear(put(x, n150), w, compute_kernel_config=config()))
    assert together.any()
    for count in (1, 2, 3, 5, 8, 12, 20):
        few = ttnn.linear(put(x[..., :count, :], n150), w, compute_kernel_config=config())
        assert torch.equal(ttnn.to_torch(few), together[..., :count, :])


def padded_weight(rows: int, cols: int) -> torch.Tensor:
    """[rows, cols, 96, 64] of chips that share tiles, have zeros at the end, or nothing at all."""
    w = operand(rows, cols, 96, 64, seed=15).bfloat16()
    w[:, -1, -40:] = 0
    w[0, 0, :, 32:] = w[0, 0, :, :32]
    w[0, 1, :, :32] = 0
    w[1] = w[0]  # replicated heads
    w[-1] = 0
    return w


@pytest.mark.parametrize("rows", [1, 5, 32, 300])
@pytest.mark.parametrize("weight_format", ["bfloat16", "bfloat8_b"])
@pytest.mark.parametrize("axes", [(1, 1), (4, 1), (1, 2), (4, 2)])
@pytest.mark.parametrize("wide", [True, False])
def test_products_without_padding_and_replicas_are_products_with_them(
    axes: tuple[int, int], weight_format: str, rows: int, wide: bool, monkeypatch: Any
) -> None:
    x = operand(*axes, 1, 1, rows, 96, seed=16).bfloat16()
    w = padded_weight(4, 2)[:, :, None, None]
    rounding = Rounding(DataType[weight_format.upper()], wide)
    fast = MeshWeight(w, None).product(x, rounding)(x)
    sums = torch.matmul(x.double(), w.double()).float()
    assert fast.shape == sums.shape and not fast[-1].any()
    monkeypatch.setattr(native, "library", lambda: None)
    slow = MeshWeight(w, None).product(x, rounding)(x)
    for found in (fast, slow):
        assert found.dtype is torch.bfloat16
        error = (found.float() - rounding(sums).float()).abs()
        step = (
            sums.unflatten(-1, (-1, 16))
            .abs()
            .amax(-1, keepdim=True)
            .expand(*error.shape[:-1], -1, 16)
        )
        assert (error <= 2**-6 * step.flatten(-2)).all()  # a unit in the last place of a block
        assert (error == 0).float().mean() > 0.95


@pytest.mark.skipif(native.library() is None, reason="no C compiler here")
@pytest.mark.parametrize("axes", [(1, 1), (4, 1), (1, 2), (4, 2)])
def test_rows_of_idle_users_are_multiplied_in_the_first_step_alone(axes: tuple[int, int]) -> None:
    w = padded_weight(4, 2)[:, :, None, None]
    rounding = Rounding(DataType.BFLOAT8_B, is_wide=False)
    steps = [operand(*axes, 1, 1, 4, 96, seed=seed).bfloat16() for seed in (21, 22)]
    for x in steps:  # of one user; the others are the same in every step
        x[..., 1:, :] = 0.5
    product = MeshWeight(w, None).product(steps[0], rounding)
    product(steps[0])
    calls: list[Call] = []
    with listening(calls.append):
        fast = product(steps[1])
    assert torch.equal(fast, MeshWeight(w, None).product(steps[1], rounding)(steps[1]))
    calls[0].given["known_results"].fill_(7)
    with listening(calls.append):
        looked_up = product(steps[1])
        steps[1][..., 1:, :] = -0.5  # more users
        afresh = product(steps[1])
    assert torch.equal(looked_up[..., 0, :], fast[..., 0, :])
    is_sum = fast[..., 1:, :] != 0  # chips without weights have zeros
    assert is_sum.any() and (looked_up[..., 1:, :][is_sum] == 7).all()
    assert torch.equal(afresh, MeshWeight(w, None).product(steps[1], rounding)(steps[1]))


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("rows", [5, 33, 700])
@pytest.mark.parametrize("weight_format", ["bfloat16", "bfloat8_b", "bfloat4_b"])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("axes", "total"), [((4, 2), (0, 1)), ((4, 2), (1, 2)), ((1, 2), (1, 1)), ((4, 1), (0, 4))]
)
def test_a_sum_made_with_its_products_is_that_of_what_they_give(
    monkeypatch: pytest.MonkeyPatch,
    axes: tuple[int, int],
    total: tuple[int, int],
    weight_format: str,
    rows: int,
    wide: bool,
) -> None:
    monkeypatch.setattr(at_once, "_ROWS_ANYWHERE", rows)  # also where libraries are faster
    x = operand(*axes, 1, 1, rows, 96, seed=16).bfloat16()
    w = torch.cat([padded_weight(4, 2), padded_weight(4, 2).flip(1)], -1).repeat(1, 1, 1, 2)
    w = to_format(w, DataType[weight_format.upper()])[:, :, None, None]
    rounding = Rounding(DataType[weight_format.upper()], wide)
    weight = MeshWeight(w, None)
    product = weight.product(x, rounding)(x)
    axis, parts = total
    for bits in (0, 7):  # of bfloat16, of blocks
        calls: list[Call] = []
        with listening(calls.append):
            found = sum_over(product, axis, bits, parts=parts)
        assert [call.name for call in calls] == ["multiply"]
        apart = sum_over(weight.product(x, rounding)(x).made(), axis, bits, parts=parts)
        assert found is not None and apart is not None
        assert torch.equal(found.view(torch.int16), apart.view(torch.int16)) and found.any()


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize(("axes", "axis"), [((2, 4), 1), ((4, 1), 0), ((1, 4), 1), ((4, 2), 0)])
def test_what_chips_gathered_is_multiplied_as_it_lies(
    monkeypatch: pytest.MonkeyPatch, axes: tuple[int, int], axis: int, rows: int
) -> None:
    monkeypatch.setattr(at_once, "_ROWS_ANYWHERE", rows)  # also where libraries are faster
    x = operand(*axes, 1, 1, rows, 48, seed=17).bfloat16()
    gathered = side_by_side(x, axis, axes[axis], 3)
    chips = [x.narrow(axis, i, 1) for i in range(axes[axis])]
    assert torch.equal(gathered, torch.cat(chips, -1))
    gathered = side_by_side(x, axis, axes[axis], 3)
    is_apart = rows > at_once.FEW and axes != (4, 2) and native.products() == "pairs"
    assert isinstance(gathered, at_once.Gathered) == is_apart
    w = operand(*axes, 1, 1, 48 * axes[axis], 64, seed=18).bfloat16()
    if axes == (4, 2):
        w = w[:1]
    rounding = Rounding(DataType.BFLOAT8_B, is_wide=False)
    seen = gathered.view(*gathered.shape[:2], 1, rows, 1, -1)
    calls: list[Call] = []
    with listening(calls.append):
        found = made(MeshWeight(w, None).product(seen, rounding)(seen))
    assert "copy" not in [call.name for call in calls]
    joined = torch.cat(chips, -1).view(seen.shape)
    expected = made(MeshWeight(w, None).product(joined, rounding)(joined))
    assert torch.equal(found, expected) and found.any()


def test_equal_tiles_are_kept_once_and_zeros_never() -> None:
    w = padded_weight(4, 2).mT.contiguous()  # [r, c, N, K]
    store = store_of(w)
    tiles = Tiles(store, [(r, c) for r in range(4) for c in range(2)])
    pairs = tiles.records[:, 1]
    kept = [int((pairs[tiles.records[:, 0] == place] > 0).sum()) for place in range(8)]
    assert kept == [1, 1, 1, 1, 2, 2, 0, 0]
    once = {(first, count) for _, count, first, _, _ in tiles.records.tolist()}
    assert store.words is not None and len(store.words) == sum(count for _, count in once)
    assert len(once) == 1 + 1 + 2 + 2 + 1  # of rows 0 and 1 together, of row 2, and zeros
    assert len(tiles.goals) == 16 and len({tuple(g) for g in tiles.goals.tolist()}) == 16


def test_rows_that_a_constant_picks_are_looked_up(n150: Any) -> None:
    order = torch.tensor([3, 0, 31])
    picks = put(torch.eye(32)[order][None, None], n150)
    x = ttnn.add(put(operand(1, 1, 32, 64, seed=17), n150, ttnn.bfloat8_b), 1.0)  # no constant
    out = ttnn.matmul(picks, x, dtype=ttnn.bfloat16, compute_kernel_config=config())
    assert torch.equal(ttnn.to_torch(out), ttnn.to_torch(x)[:, :, order].bfloat16())
    assert any(run for key, run in picks.forms.items() if key[0] == "picks")
    twice = put(2 * torch.eye(32)[None, None], n150)  # no look-up
    out = ttnn.matmul(twice, x, dtype=ttnn.bfloat16, compute_kernel_config=config())
    assert torch.equal(ttnn.to_torch(out), 2 * ttnn.to_torch(x).bfloat16())
    assert not any(run for key, run in twice.forms.items() if key[0] == "picks")


def test_new_values_of_a_weight_are_used_at_once(n150: Any) -> None:
    x, w = operand(1, 1, 32, 64, seed=13), operand(1, 1, 64, 32, seed=14)
    weight = put(w, n150)
    first = ttnn.to_torch(ttnn.matmul(put(x, n150), weight))
    host = ttnn.from_torch(-w, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)
    ttnn.copy_host_to_device_tensor(host, weight)
    assert torch.equal(ttnn.to_torch(ttnn.matmul(put(x, n150), weight)), -first)


def test_room_for_forms_of_weights_is_given_back() -> None:
    gc.collect()  # models of other tests
    before = kernels._budget["left"]
    weight = kernels.Weight(torch.ones(96, 64))
    x = torch.ones(2, 64)
    with kernels.fixed():
        multiply = weight.product(x, narrow=False)
    assert torch.equal(multiply(x), torch.full((2, 96), 64.0))
    assert kernels._budget["left"] == before - 96 * 64 * 4
    del multiply, weight
    assert kernels._budget["left"] == before
    if native.library() is not None:
        on_mesh = MeshWeight(torch.ones(2, 1, 64, 96).bfloat16(), None)
        rows = torch.ones(1, 1, 2, 64).bfloat16()
        multiply = on_mesh.product(rows, Rounding(DataType.BFLOAT16, True))
        assert kernels._budget["left"] == before - 32 * (32 + 8)  # one tile, packed
        del multiply, on_mesh
        assert kernels._budget["left"] == before


@pytest.mark.parametrize(
    ("device", "length", "grid"),
    [("P150", 640, (8, 10)), ("P150", 1024, (8, 8)), ("P100", 640, (7, 10)), ("N150", 640, (8, 8))],
)
def test_prefill_takes_more_rows_of_cores_where_that_leaves_each_less(
    device: str, length: int, grid: tuple[int, int]
) -> None:
    plan = prefill_linear(
        length, 4096, 6144, kernel=None, fp32=False, dtype=DataType.BFLOAT8_B,
        spec=SPECS[device], weight=Precision.BFP8,
    )  # fmt: skip
    config = plan.kwargs["program_config"]
    assert config.compute_with_storage_grid_size == grid
    assert config.per_core_M == -(-length // 32 // grid[1])
