"""Ops that take queries and keys, or keys and values, at a time: bit for bit what two ops do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from backends.mesh import open_mesh
from tests.ops.emulated import get, per_user, put, ttnn
from tests.ops.golden_cases import operand

H, K, W, USERS, BLOCKS, PAGES = 6, 2, 64, 5, 24, 4
TABLE = torch.randperm(BLOCKS)[: USERS * PAGES].view(USERS, PAGES).to(torch.int32)


@pytest.fixture(scope="module", params=["N150", "T3K"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Any]:
    with open_mesh(request.param) as device:
        yield device


def heads(mesh: Any, seed: int) -> tuple[Any, Any, Any]:
    """Queries, keys and values of a decode step, keys on cores of their own."""
    width = (H + 2 * K) * W
    cores = ttnn.num_cores_to_corerangeset(
        H + 2 * K, mesh.compute_with_storage_grid_size(), row_wise=True
    )
    memory = ttnn.create_sharded_memory_config(
        (32, W), cores, ttnn.ShardStrategy.WIDTH, use_height_and_width_as_shard_shape=True
    )
    dims = (None, 3) if mesh.shape[1] > 1 else None  # other values on every chip
    x = put(mesh, operand(1, 1, USERS, width * mesh.shape[1], seed=seed), memory=memory, dims=dims)
    return ttnn.experimental.nlp_create_qkv_heads_decode(
        x, num_heads=H, num_kv_heads=K, overlap_qk_coregrid=False
    )


def replayed(mesh: Any, run: Callable[[], Any]) -> Any:
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    made = run()
    ttnn.end_trace_capture(mesh, trace, cq_id=0)
    ttnn.execute_trace(mesh, trace, cq_id=0, blocking=True)
    return made


@pytest.mark.parametrize("traced", [False, True])
def test_queries_and_keys_turn_together_as_they_turn_alone(mesh: Any, traced: bool) -> None:
    q, k, _ = heads(mesh, seed=1)
    # other rows for keys than for queries, so that a mix-up shows
    tables = [operand(1, 2 * USERS, 1, W, seed=seed) for seed in (2, 3)]
    turn = torch.zeros(32, 32)
    even = torch.arange(0, 32, 2)
    turn[even, even + 1], turn[even + 1, even] = 1, -1

    def on(users: int, part: slice) -> list[Any]:
        placed = [put(mesh, t[:, part], memory=per_user(mesh, users, 32, W)) for t in tables]
        turns = turn.repeat(users, 1)[None, None]
        return [*placed, put(mesh, turns, memory=per_user(mesh, users, 32, 32))]

    both = on(2 * USERS, slice(None))

    def run() -> Any:
        return ttnn.experimental.rotary_embedding_llama_fused_qk(q, k, *both)

    found = replayed(mesh, run) if traced else run()
    for x, got, part in zip((q, k), found, (slice(USERS), slice(USERS, None)), strict=True):
        alone = ttnn.experimental.rotary_embedding_llama(x, *on(USERS, part), is_decode_mode=True)
        assert torch.equal(got.data, alone.data)
        assert got.memory_config() == x.memory_config()


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat8_b"])
def test_keys_and_values_are_written_together_as_alone(mesh: Any, dtype: str, traced: bool) -> None:
    _, k, v = heads(mesh, seed=4)
    at = put(mesh, torch.tensor([100, -1, 31, 32, 127], dtype=torch.int32))
    where = {"update_idxs_tensor": at, "page_table": put(mesh, TABLE)}

    def caches() -> list[Any]:
        return [put(mesh, operand(BLOCKS, K, 32, W, seed=s), getattr(ttnn, dtype)) for s in (5, 6)]

    found, alone = caches(), caches()

    def run() -> Any:
        return ttnn.experimental.paged_fused_update_cache(found[0], k, found[1], v, **where)

    _ = replayed(mesh, run) if traced else run()
    for cache, new in zip(alone, (k, v), strict=True):
        ttnn.experimental.paged_update_cache(cache, new, **where)
    for got, wanted in zip(found, alone, strict=True):
        assert torch.equal(got.data, wanted.data)
    assert not torch.equal(get(found[0]), get(caches()[0]))
