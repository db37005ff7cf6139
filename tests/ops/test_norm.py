"""Norms: whole, in shards, with columns on other chips, of heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from backends.emulator.numerics.sums import side_by_side
from backends.emulator.ops import norm as norms
from backends.mesh import open_mesh
from tests.ops.emulated import EXACT, ROUNDED, ROWS, get, put, ttnn, width_shards
from tests.ops.golden_cases import operand
from tests.ops.model_golden_cases import EPSILON, operands
from tests.ops.wheel_model_ops import answers

X, WEIGHT = operands()["x"], operands()["weight"]


def expected(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    scale = (wide.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return (wide * scale * weight.flatten().double()).float()


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with open_mesh("N150") as device:
        yield device


def test_a_norm_equals_the_wheels_golden_function(mesh: Any) -> None:
    out = ttnn.rms_norm(put(mesh, X), epsilon=EPSILON, weight=put(mesh, WEIGHT, rows=True))
    torch.testing.assert_close(get(out), answers()["goldens"]["norm"], **ROUNDED)


def test_a_norm_by_mean_and_variance_equals_the_wheels_golden_function(mesh: Any) -> None:
    bias = put(mesh, operands()["bias"], rows=True)
    weight = put(mesh, WEIGHT, rows=True)
    out = ttnn.layer_norm(put(mesh, X), epsilon=EPSILON, weight=weight, bias=bias)
    torch.testing.assert_close(get(out), answers()["goldens"]["layer norm"], **ROUNDED)


@pytest.mark.parametrize("users", [32, 5])
def test_shards_give_what_whole_rows_give(mesh: Any, users: int) -> None:
    x, shards = X[:, :, :users], width_shards(6, 576)
    config = ttnn.LayerNormShardedMultiCoreProgramConfig(
        compute_with_storage_grid_size=[6, 1], subblock_w=3, block_h=1, block_w=3, inplace=False
    )
    weight = put(mesh, WEIGHT, rows=True)
    sharded = ttnn.rms_norm(
        put(mesh, x, memory=shards), epsilon=EPSILON, weight=weight, program_config=config
    )
    whole = ttnn.rms_norm(put(mesh, x), epsilon=EPSILON, weight=weight)
    assert torch.equal(get(sharded), get(whole))
    assert sharded.memory_config() == shards


def test_heads_are_normed_one_by_one(mesh: Any) -> None:
    heads, weight = operand(2, 3, 32, 64, seed=5), operand(1, 1, 2, 32, seed=6)
    out = ttnn.rms_norm(put(mesh, heads), epsilon=EPSILON, weight=put(mesh, weight, rows=True))
    torch.testing.assert_close(get(out), expected(heads, weight), **ROUNDED)


@pytest.mark.parametrize("dtype", ["bfloat8_b", "float32"])
def test_results_have_the_inputs_format(mesh: Any, dtype: str) -> None:
    kind = getattr(ttnn, dtype)
    x = put(mesh, X, kind)
    out = ttnn.rms_norm(x, epsilon=EPSILON, weight=put(mesh, WEIGHT, rows=True))
    wanted = expected(get(x), WEIGHT)
    if dtype == "float32":
        torch.testing.assert_close(get(out), wanted, rtol=1e-5, atol=1e-6)
    else:
        rounded = ttnn.to_torch(ttnn.from_torch(wanted, dtype=kind)).float()
        steps = (get(out) - rounded).abs() / wanted.abs().amax()
        assert steps.max() < 2**-6


@pytest.mark.parametrize("product", ["N300", "T3K", "TG"])
def test_chips_that_share_the_columns_norm_by_each_others_statistics(product: str) -> None:
    x, weight = operand(1, 1, 64, 1024, seed=7), operand(1, 1, 32, 32, seed=8)
    with open_mesh(product) as mesh:
        cut = (None, 3)
        own = put(mesh, x, dims=cut)
        stats = ttnn.rms_norm_pre_all_gather(own, dtype=ttnn.float32, compute_kernel_config=EXACT)
        stats = ttnn.all_gather(stats, dim=3, cluster_axis=1)
        out = ttnn.rms_norm_post_all_gather(
            own,
            stats,
            epsilon=EPSILON,
            weight=put(mesh, weight, rows=True, dims=(None, 2)),
        )
        chips = mesh.shape[1]
        found = torch.cat([get(out, (0, c)) for c in range(chips)], dim=-1)
    torch.testing.assert_close(found, expected(x, weight), **ROUNDED)


def test_the_two_halves_of_a_norm_equal_the_wheels_golden_functions(mesh: Any) -> None:
    x = put(mesh, X)
    out = ttnn.rms_norm_post_all_gather(
        x,
        ttnn.rms_norm_pre_all_gather(x, dtype=ttnn.float32),
        epsilon=EPSILON,
        weight=put(mesh, WEIGHT, rows=True),
    )
    torch.testing.assert_close(get(out), answers()["goldens"]["norm by statistics"], **ROUNDED)


def test_a_replayed_norm_takes_a_weight_written_in_between(mesh: Any) -> None:
    x, weight = put(mesh, X), put(mesh, WEIGHT, rows=True)
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    out = ttnn.rms_norm(x, epsilon=EPSILON, weight=weight)
    ttnn.end_trace_capture(mesh, trace, cq_id=0)
    for factor in (1, 2):
        host = ttnn.from_torch(WEIGHT * factor, dtype=ttnn.bfloat16, layout=ROWS)
        ttnn.copy_host_to_device_tensor(host, weight)
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=True)
        torch.testing.assert_close(get(out), expected(X, WEIGHT * factor), **ROUNDED)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_norm_reads_sums_of_squares_that_chips_gathered(axis: int, rows: int) -> None:
    mesh = (4, 1) if axis == 0 else (1, 4)
    x = torch.randn(*mesh, 1, 1, rows, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    own = norms._sum_squares(x)
    joined = torch.cat([own.narrow(axis, chip, 1) for chip in range(4)], -1)
    found, expected = (
        norms._normalised(x, None, each, 1 / 256, 1e-5, 7)
        for each in (side_by_side(own, axis, 4, 3), joined)
    )
    assert torch.equal(found, expected)
    exact = x.float() * (x.float().square().sum((axis, -1), keepdim=True) / 256 + 1e-5).rsqrt()
    torch.testing.assert_close(expected.float(), exact, rtol=2**-5, atol=2**-5)
