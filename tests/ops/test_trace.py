"""Traces: replay on the same tensors, with what their buffers hold then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import backends
from backends.emulator import replay
from backends.emulator.loops import native
from backends.mesh import open_mesh
from tests.ops.emulated import per_user, put
from tests.ops.golden_cases import operand

backends.select("emulator")
ttnn: Any = backends.ttnn
needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here")


@pytest.fixture(scope="module")
def mesh() -> Any:
    with open_mesh("N150") as device:
        yield device


def host(values: torch.Tensor, dtype: Any = None) -> Any:
    return ttnn.from_torch(values, dtype=dtype or ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)


def capture(mesh: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    try:
        out = run()
    finally:
        ttnn.end_trace_capture(mesh, trace, cq_id=0)
    return trace, out


def block(x: Any, w: Any) -> Any:
    """A few ops with moves, a view and a block format between them."""
    shards = ttnn.create_sharded_memory_config(
        (32, 32), ttnn.CoreGrid(x=2, y=1), ttnn.ShardStrategy.WIDTH,
        use_height_and_width_as_shard_shape=True,
    )  # fmt: skip
    y = ttnn.to_memory_config(ttnn.linear(x, w), shards)
    y = ttnn.typecast(ttnn.sharded_to_interleaved(y), ttnn.bfloat8_b)
    y = ttnn.reshape(ttnn.silu(y), (32, 64))
    return ttnn.add(ttnn.unsqueeze_to_4D(ttnn.typecast(y, ttnn.bfloat16)), x)


def test_a_replay_equals_the_eager_run_on_the_inputs_of_that_moment(mesh: Any) -> None:
    x = ttnn.to_device(host(operand(1, 1, 32, 64, seed=1)), mesh)
    w = ttnn.to_device(host(operand(1, 1, 64, 64, seed=2)), mesh)
    trace, out = capture(mesh, lambda: block(x, w))
    for seed in (3, 4, 5, 6, 7):  # op by op, being noted, and as a list that C walks
        values = host(operand(1, 1, 32, 64, seed=seed))
        ttnn.copy_host_to_device_tensor(values, x)
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=False)
        assert torch.equal(
            ttnn.to_torch(out), ttnn.to_torch(block(ttnn.to_device(values, mesh), w))
        )


def test_a_stale_input_gives_the_stale_result(mesh: Any) -> None:
    x = ttnn.to_device(host(operand(1, 1, 32, 64, seed=1)), mesh)
    trace, out = capture(mesh, lambda: ttnn.add(x, x))
    ttnn.execute_trace(mesh, trace)
    first = ttnn.to_torch(out)
    another = ttnn.to_device(host(operand(1, 1, 32, 64, seed=2)), mesh)  # not the traced buffer
    ttnn.execute_trace(mesh, trace)
    assert torch.equal(ttnn.to_torch(out), first) and another.is_allocated()


def test_a_result_has_no_values_before_the_first_replay(mesh: Any) -> None:
    x = ttnn.to_device(host(operand(1, 1, 32, 64, seed=1)), mesh)
    _, out = capture(mesh, lambda: ttnn.add(x, x))
    with pytest.raises(RuntimeError, match="has not been executed"):
        ttnn.to_torch(out)


def test_ops_in_place_count_on_from_replay_to_replay(mesh: Any) -> None:
    positions = ttnn.from_torch(torch.tensor([4, -1], dtype=torch.int32), device=mesh)

    def run() -> Any:
        before = ttnn.to_memory_config(positions, ttnn.L1_MEMORY_CONFIG)
        ttnn.plus_one(positions, skip_negative_entries=True)
        return before

    trace, before = capture(mesh, run)
    assert ttnn.to_torch(positions).tolist() == [4, -1]
    for count in (5, 6, 7):
        ttnn.execute_trace(mesh, trace)
        assert ttnn.to_torch(positions).tolist() == [count, -1]
        assert ttnn.to_torch(before).tolist() == [count - 1, -1]  # a copy made before


def test_a_result_written_into_a_buffer_is_read_by_later_ops_of_the_trace(mesh: Any) -> None:
    x = ttnn.to_device(host(torch.ones(1, 1, 32, 32)), mesh)
    total = ttnn.to_device(host(torch.zeros(1, 1, 32, 32)), mesh)

    def run() -> Any:
        ttnn.add(total, x, output_tensor=total)
        return ttnn.multiply(total, 2.0)

    trace, doubled = capture(mesh, run)
    for count in range(1, 6):
        ttnn.execute_trace(mesh, trace)
        assert ttnn.to_torch(total).unique().tolist() == [count]
        assert ttnn.to_torch(doubled).unique().tolist() == [2 * count]


def test_parts_of_chips_taken_once_show_every_replay() -> None:
    with open_mesh("N300") as mesh:
        cut = ttnn.ShardTensorToMesh(mesh, 3)
        x = ttnn.from_torch(torch.ones(1, 1, 32, 64), layout=ttnn.TILE_LAYOUT, device=mesh,
                            mesh_mapper=cut)  # fmt: skip
        trace, out = capture(mesh, lambda: ttnn.add(x, 1.0))
        parts = ttnn.get_device_tensors(out)
        for value in (1.0, 5.0):
            fresh = ttnn.from_torch(
                torch.full((1, 1, 32, 64), value), layout=ttnn.TILE_LAYOUT, mesh_mapper=cut
            )
            ttnn.copy_host_to_device_tensor(fresh, x)
            ttnn.execute_trace(mesh, trace)
            assert [ttnn.to_torch(part).unique().tolist() for part in parts] == [[value + 1]] * 2


def test_host_traffic_is_refused_during_capture(mesh: Any) -> None:
    x = ttnn.to_device(host(torch.ones(1, 1, 32, 32)), mesh)
    for traffic in (
        lambda: ttnn.to_torch(x),
        lambda: ttnn.from_device(x),
        lambda: ttnn.copy_host_to_device_tensor(host(torch.ones(1, 1, 32, 32)), x),
        lambda: ttnn.from_torch(torch.ones(4), device=mesh),
    ):
        with pytest.raises(RuntimeError, match="not supported during trace capture"):
            capture(mesh, traffic)


def test_a_released_trace_cannot_run(mesh: Any) -> None:
    x = ttnn.to_device(host(torch.ones(1, 1, 32, 32)), mesh)
    trace, _ = capture(mesh, lambda: ttnn.add(x, x))
    ttnn.release_trace(mesh, trace)
    with pytest.raises(RuntimeError, match="released or never captured"):
        ttnn.execute_trace(mesh, trace)


def test_values_between_steps_share_few_registers_and_moves_take_none(mesh: Any) -> None:
    x = ttnn.to_device(host(torch.ones(1, 1, 32, 32)), mesh)

    def run() -> Any:
        y = x
        for _ in range(50):
            y = ttnn.to_memory_config(ttnn.add(y, 1.0), ttnn.L1_MEMORY_CONFIG)
            y = ttnn.to_memory_config(y, ttnn.DRAM_MEMORY_CONFIG)
        return y

    trace, out = capture(mesh, run)
    program = mesh.traces[trace]
    assert len(program.steps) == 50 and program.size <= 4
    ttnn.execute_trace(mesh, trace)
    assert ttnn.to_torch(out).unique().tolist() == [51.0]


USERS, HEADS, WIDTH, PAGES = 2, 2, 32, 4


class Step:
    """A decode step in small: new keys and values into pages, attention, sum, next positions."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self.cache = put(mesh, torch.zeros(USERS * PAGES, HEADS, 32, WIDTH))
        self.positions = put(mesh, torch.tensor([30, 5]))
        self.table = put(mesh, torch.arange(USERS * PAGES).flip(0).view(USERS, PAGES))
        self.x = put(mesh, torch.zeros(1, USERS, HEADS, WIDTH))

    def run(self) -> Any:
        where = {"page_table": self.table, "update_idxs_tensor": self.positions}
        memory = per_user(self.mesh, USERS, 32, WIDTH)
        new = ttnn.to_memory_config(ttnn.add(self.x, self.x), memory)
        ttnn.experimental.paged_update_cache(self.cache, new, **where)
        seen = ttnn.transformer.paged_scaled_dot_product_attention_decode(
            self.x, self.cache, self.cache, self.table, cur_pos_tensor=self.positions, scale=1.0
        )
        values, places = ttnn.topk(ttnn.add(seen, self.x), k=4)
        ttnn.plus_one(self.positions)
        return values, places

    def feed(self, seed: int) -> None:
        values = operand(1, USERS, HEADS, WIDTH, seed=seed)
        if seed == 5:
            values[0, 0, 0, 0] = torch.nan  # which no loop sorts
        ttnn.copy_host_to_device_tensor(host(values), self.x)


# warm, noted, walked; then topk refuses what is no number, which stays in the cache, and is left to
# Python
IN_C = [None, 0, 0, 0, 0, None, 1, 1, 1]


@needs_compiler
@pytest.mark.parametrize(
    ("most", "left"),
    [(replay.MOST_RECORDED, IN_C), (2000, [None] * 9)],
    ids=["in C", "too large to record"],
)
def test_a_list_walked_in_c_equals_the_steps_op_by_op(
    mesh: Any, monkeypatch: pytest.MonkeyPatch, most: int, left: list[int | None]
) -> None:
    monkeypatch.setattr(replay, "MOST_RECORDED", most)
    traced, eager = Step(mesh), Step(mesh)
    trace, out = capture(mesh, traced.run)
    program = mesh.traces[trace]
    left_to_python = []
    for seed in range(9):
        traced.feed(seed)
        eager.feed(seed)
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=False)
        for found, expected in zip(out, eager.run(), strict=True):
            assert torch.equal(bits(found), bits(expected)), seed
        assert torch.equal(bits(traced.cache), bits(eager.cache))
        assert torch.equal(traced.positions.data, eager.positions.data)
        walked = program._replay
        left_to_python.append(None if walked is None else len(walked._reads))
    assert left_to_python == left


@needs_compiler
def test_a_list_goes_on_when_users_want_more_than_the_best_token(mesh: Any) -> None:
    places = torch.arange(64, dtype=torch.int32).view(1, 1, 2, 32)
    operands = [put(mesh, torch.zeros(1, 1, 2, 32)), put(mesh, places)]
    k = put(mesh, torch.ones(2, dtype=torch.int32), ttnn.uint32)
    settings = {name: put(mesh, torch.ones(2), rows=True) for name in ("p", "temp")}

    def next_places() -> Any:
        tokens = ttnn.sampling(*operands, k, **settings)
        ttnn.plus_one(tokens)
        return tokens

    trace, out = capture(mesh, next_places)
    found: dict[int, set[Any]] = {1: set(), 32: set()}
    lists = set()
    for run, most in enumerate((1, 1, 1, *[32] * 9, 1, 1, 32)):
        ttnn.copy_host_to_device_tensor(
            ttnn.from_torch(torch.full((2,), most, dtype=torch.int32), dtype=ttnn.uint32), k
        )
        ttnn.execute_trace(mesh, trace)
        found[most].add(tuple(ttnn.to_torch(out).flatten().tolist()))
        if run:
            lists.add(mesh.traces[trace]._replay)
    assert found[1] == {(1, 33)} and len(found[32]) > 1
    assert len(lists) == 1 and None not in lists


@needs_compiler
def test_a_list_holds_whatever_large_buffers_hold_that_only_take_results(mesh: Any) -> None:
    x = ttnn.to_device(host(torch.ones(1, 1, 1024, 1024)), mesh)
    buffer = ttnn.to_device(host(torch.zeros(1, 1, 1024, 1024)), mesh)
    trace, _ = capture(mesh, lambda: ttnn.add(x, x, output_tensor=buffer))
    lists = set()
    for run in range(5):
        ttnn.copy_host_to_device_tensor(host(torch.full((1, 1, 1024, 1024), 7.0)), buffer)
        ttnn.execute_trace(mesh, trace)
        assert ttnn.to_torch(buffer).unique().tolist() == [2]
        if run:
            lists.add(mesh.traces[trace]._replay)
    assert len(lists) == 1 and None not in lists


@needs_compiler
def test_a_walk_refuses_pages_beyond_the_cache(mesh: Any) -> None:
    step = Step(mesh)
    trace, _ = capture(mesh, step.run)
    for _ in range(3):
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=False)
    assert mesh.traces[trace]._replay is not None
    beyond = torch.full((USERS, PAGES), USERS * PAGES, dtype=torch.int32)
    ttnn.copy_host_to_device_tensor(ttnn.from_torch(beyond, dtype=ttnn.int32), step.table)
    before = step.cache.data.clone()
    with pytest.raises(RuntimeError, match="names page 8, the cache has 8"):
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=False)
    assert torch.equal(step.cache.data, before)


@needs_compiler
def test_products_that_nobody_read_before_are_read_in_a_list() -> None:
    """By a sum over chips, which makes them itself, and by others; a refusal goes on in Python."""
    with open_mesh("T3K") as mesh:
        x = put(mesh, torch.zeros(8, 1, 64, 64), dims=(None, 0))
        w = put(mesh, operand(8, 1, 64, 256, seed=3), ttnn.bfloat8_b, dims=(None, 0))

        def step() -> Any:
            parts = ttnn.linear(ttnn.add(x, x), w, dtype=ttnn.bfloat8_b)
            parts = ttnn.reshape(parts, (1, 2, 32, 256))
            total = ttnn.reduce_scatter(ttnn.reshape(parts, (1, 1, 64, 256)), 3)
            other = ttnn.add(total, total)
            values, _ = ttnn.topk(ttnn.slice(other, (0, 0, 0, 0), (1, 1, 64, 32)), k=4)
            twice = ttnn.add(parts, parts)
            others = [ttnn.add(other, total) for _ in range(3)]  # take memory that is free
            return total, values, twice, ttnn.silu(parts), *others  # silu is no loop

        trace, out = capture(mesh, step)
        for seed in range(7):
            values = operand(8, 1, 64, 64, seed=seed)
            if seed == 5:
                values[0, 0, 0, 0] = torch.nan  # which no loop sorts
            mapper = ttnn.ShardTensor2dMesh(mesh, dims=(None, 0), mesh_shape=(1, 8))
            fed = ttnn.from_torch(
                values, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, mesh_mapper=mapper
            )
            ttnn.copy_host_to_device_tensor(fed, x)
            ttnn.execute_trace(mesh, trace, cq_id=0)
            for found, expected in zip(out, step(), strict=True):
                assert torch.equal(bits(found), bits(expected)), seed


def bits(tensor: Any) -> torch.Tensor:
    """Values as integers: what is no number equals itself."""
    data = tensor.data
    return data.view(torch.int16) if data.dtype is torch.bfloat16 else data


def test_a_trace_keeps_no_memory_of_values_between_its_steps(mesh: Any) -> None:
    """Else a second trace finds no room: one of logits and one of tokens live side by side."""
    x, w = (put(mesh, operand(1, 1, 64, 64, seed=i), ttnn.bfloat16) for i in range(2))

    def step() -> Any:
        y = ttnn.linear(x, w, memory_config=ttnn.L1_MEMORY_CONFIG)
        z = ttnn.multiply(y, y, memory_config=ttnn.L1_MEMORY_CONFIG)
        return ttnn.add(z, x, memory_config=ttnn.DRAM_MEMORY_CONFIG)

    step()
    before = mesh.l1.allocated
    trace, _ = capture(mesh, step)
    assert mesh.l1.allocated == before
    ttnn.release_trace(mesh, trace)


@needs_compiler
def test_attention_sees_caches_part_after_it_was_recorded() -> None:
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    with open_mesh("T3K_2x4") as mesh:
        shape = ([4, 1, 32, 64], ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh)
        keys, values = ttnn.zeros(*shape), ttnn.zeros(*shape)
        pages = put(mesh, torch.arange(4)[None])
        at = put(mesh, torch.tensor([40]))
        q, same = put(mesh, random(1, 1, 32, 64)), put(mesh, random(1, 1, 64, 64))

        def fill(x: Any) -> None:
            for cache in (keys, values):
                ttnn.experimental.paged_fill_cache(cache, x, pages, batch_idx=0)

        def attend() -> Any:
            return ttnn.transformer.paged_scaled_dot_product_attention_decode(
                q, keys, values, page_table_tensor=pages, cur_pos_tensor=at
            )

        fill(same)
        attend()
        trace, out = capture(mesh, attend)
        for _ in range(4):  # the third makes a list
            ttnn.execute_trace(mesh, trace, cq_id=0)
        fill(put(mesh, random(2, 4, 64, 64), dims=(0, 1)))
        ttnn.execute_trace(mesh, trace, cq_id=0)
        found, wanted = (ttnn.get_device_tensors(x) for x in (out, attend()))
        for chip, expected in zip(found, wanted, strict=True):
            assert torch.equal(ttnn.to_torch(chip), ttnn.to_torch(expected))
        assert not torch.equal(ttnn.to_torch(found[0]), ttnn.to_torch(found[1]))
