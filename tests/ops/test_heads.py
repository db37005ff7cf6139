"""Heads: where each value of a fused projection goes, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from backends.device_specs import SPECS
from backends.mesh import open_mesh
from models.plans.attention import attention_decode
from models.plans.target import Target
from models.precision import ModelPrecision
from models.registry import load_config
from models.sharding import Sharding
from tests.ops.emulated import PER_USER, get, per_user, put, put_heads, ttnn
from tests.ops.golden_cases import operand

H, K, W = 6, 2, 64
COUNTS = {"num_heads": H, "num_kv_heads": K}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with open_mesh("N150") as device:
        yield device


def split(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Plain slices of a projection [n, (H + 2K) W]: heads [n, count, W] of q, k and v."""
    q, k, v = x.split([H * W, K * W, K * W], dim=-1)
    return tuple(part.reshape(len(x), -1, W) for part in (q, k, v))


def test_prompts_split_into_heads(mesh: Any) -> None:
    x = operand(3, 1, 40, (H + 2 * K) * W, seed=1)
    found = ttnn.experimental.nlp_create_qkv_heads(put(mesh, x), **COUNTS, transpose_k_heads=False)
    for prompt in range(3):
        for out, heads in zip(found, split(x[prompt, 0]), strict=True):
            assert torch.equal(get(out)[prompt], heads.transpose(0, 1))


def test_keys_can_come_transposed(mesh: Any) -> None:
    x = put(mesh, operand(1, 1, 40, (H + 2 * K) * W, seed=1))
    plain = ttnn.experimental.nlp_create_qkv_heads(x, **COUNTS, transpose_k_heads=False)
    turned = ttnn.experimental.nlp_create_qkv_heads(x, **COUNTS)
    assert torch.equal(get(turned[1]), get(plain[1]).mT)
    assert torch.equal(get(turned[2]), get(plain[2]))


def test_joining_heads_undoes_the_split(mesh: Any) -> None:
    x = operand(3, 1, 40, (H + 2 * K) * W, seed=2)
    q, _, _ = ttnn.experimental.nlp_create_qkv_heads(
        put(mesh, x), **COUNTS, transpose_k_heads=False
    )
    assert torch.equal(get(ttnn.experimental.nlp_concat_heads(q)), x[..., : H * W])


@pytest.mark.parametrize("users", [1, 7, 32])
def test_users_split_into_heads_and_join_again(mesh: Any, users: int) -> None:
    x = operand(1, 1, users, (H + 2 * K) * W, seed=3)
    found = ttnn.experimental.nlp_create_qkv_heads_decode(
        put(mesh, x), **COUNTS, memory_config=PER_USER
    )
    for out, heads in zip(found, split(x[0, 0]), strict=True):
        assert torch.equal(get(out)[0], heads)
    joined = get(ttnn.experimental.nlp_concat_heads_decode(found[0], num_heads=H))
    assert torch.equal(joined[:, :, :users], x[..., : H * W])
    assert joined.shape[2] == 32 and not joined[:, :, users:].any()


def test_only_the_heads_asked_for_are_joined(mesh: Any) -> None:
    x = operand(1, 8, H, W, seed=4)
    out = ttnn.experimental.nlp_concat_heads_decode(put_heads(mesh, x), num_heads=4)
    assert torch.equal(get(out)[0, 0, :8], x[0, :, :4].flatten(1))


def test_users_of_no_rectangle_of_cores_are_refused(mesh: Any) -> None:
    memory = per_user(mesh, 20, 32, W)
    x = put(mesh, operand(1, 20, H, W, seed=5), memory=memory)
    with pytest.raises(RuntimeError, match="no rectangle"):
        ttnn.experimental.nlp_concat_heads_decode(x, num_heads=H)
    given = {"num_heads": H, "sub_core_grids": memory.shard_spec.grid}
    assert ttnn.experimental.nlp_concat_heads_decode(x, **given).shape == (1, 1, 32, H * W)


@pytest.mark.parametrize("device", ["N150", "T3K", "P100", "P150"])
def test_attention_looks_for_a_user_where_her_queries_lie(device: str) -> None:
    """The op takes the core of a user's number in its own grid, row by row."""
    with open_mesh(device) as mesh:
        sizes = Sharding(load_config("Llama-3.1-8B"), *mesh.shape)
        layer = ModelPrecision.preset("performance", sizes.config).layer(0)
        target = Target(SPECS[device], mesh.arch(), sizes, layer, batch=32)
        qkv = ttnn.empty(
            [1, 1, 32, sizes.local_qkv_width], ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh,
            ttnn.L1_MEMORY_CONFIG,
        )  # fmt: skip
        plan = attention_decode(target)
        q, _, _ = ttnn.experimental.nlp_create_qkv_heads_decode(
            qkv, num_heads=sizes.local_heads, num_kv_heads=sizes.local_kv_heads, **plan.heads
        )
        grid = plan.scores["program_config"].compute_with_storage_grid_size
        wanted = ttnn.num_cores_to_corerangeset(32, ttnn.CoreCoord(*grid), row_wise=True)
        assert q.memory_config().shard_spec.grid == wanted
