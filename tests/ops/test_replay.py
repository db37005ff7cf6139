"""Replays by lists that C walks: against the steps op by op, and what memory they take."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import backends
from backends.emulator import replay
from backends.emulator.launch import Out, launch
from backends.emulator.loops import native
from backends.emulator.loops.call import Later
from backends.mesh import open_mesh
from tests.ops.emulated import capture, host, per_user, put
from tests.ops.golden_cases import operand

backends.select("emulator")
ttnn: Any = backends.ttnn
pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler here")


@pytest.fixture(scope="module")
def mesh() -> Any:
    with open_mesh("N150") as device:
        yield device


def bits(tensor: Any) -> torch.Tensor:
    """Values as integers: what is no number equals itself."""
    data = tensor.data
    return data.view(torch.int16) if data.dtype is torch.bfloat16 else data


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
        return values, places, new

    def feed(self, seed: int) -> None:
        values = operand(1, USERS, HEADS, WIDTH, seed=seed)
        if seed == 5:
            values[0, 0, 0, 0] = torch.nan  # which no loop sorts
        ttnn.copy_host_to_device_tensor(host(values), self.x)


# warm, noted, walked; then topk refuses what is no number, which stays in the cache, and is left to
# Python
IN_C = [None, 0, 0, 0, 0, None, 1, 1, 1]


def test_a_list_walked_in_c_equals_the_steps_op_by_op(mesh: Any) -> None:
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
    assert left_to_python == IN_C


def test_lists_of_a_device_take_turns_in_one_memory_and_let_go_of_it() -> None:
    """What they gave stays, also what a list gave that could not be walked to its end."""
    with open_mesh("N150") as mesh, open_mesh("N150") as another:
        traced = [Step(device) for device in (mesh, mesh, another)]
        eager = [Step(device) for device in (mesh, mesh, another)]
        traces = [capture(step.mesh, step.run) for step in traced]
        for seed in range(9):
            for at, pair in enumerate(zip(traced, eager, strict=True)):
                for step in pair:
                    step.feed(10 * at + seed)
            for step, (trace, _) in zip(traced, traces, strict=True):
                ttnn.execute_trace(step.mesh, trace, cq_id=0)
            for (_, out), step in zip(traces, eager, strict=True):
                for found, expected in zip(out, step.run(), strict=True):
                    assert torch.equal(bits(found), bits(expected)), seed
        memories = [
            weakref.ref(step.mesh.traces[trace]._replay._arena.untyped_storage())
            for step, (trace, _) in zip(traced, traces, strict=True)
        ]
        assert memories[0]() is memories[1]() is not memories[2]()
        ttnn.release_trace(mesh, traces[0][0])
        assert memories[1]() is not None
        ttnn.release_trace(mesh, traces[1][0])
        assert memories[1]() is None and not mesh.arenas


class Alive(TorchDispatchMode):
    """Counts the bytes of what torch makes while it is there, and the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or func._schema.is_mutable):
            storage = result.untyped_storage()
            self._count(storage.nbytes())
            weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def test_noting_what_steps_do_takes_no_more_memory_than_doing_it(mesh: Any) -> None:
    x = put(mesh, operand(1, 1, 512, 512, seed=1))

    def run() -> Any:
        y = x
        for _ in range(6):
            wide = ttnn.concat([ttnn.silu(y)] * 4, 2)  # silu is no loop
            y = ttnn.slice(ttnn.add(wide, wide), (0, 0, 0, 0), (1, 1, 512, 512))
        return ttnn.add(y, x)

    run()  # which prepares what ops keep
    trace, out = capture(mesh, run)
    program, most = mesh.traces[trace], []
    for compute in (
        lambda: program._run_steps(program._registers([x.data]), 0),
        lambda: replay.Recorder(program._registers([x.data])).run(program.steps),
    ):
        with Alive() as alive:
            compute()
        most.append(alive.most)
    assert most[1] <= most[0] < 7 * x.data.nbytes * 4, most


class Twice(Later):
    """A tensor of which half is made."""

    def make(self) -> torch.Tensor:
        return self.source * 2

    @property
    def recipe(self) -> Callable[..., Later]:
        return Twice


def test_what_python_would_make_later_is_made_where_a_list_reads_it(mesh: Any) -> None:
    x = put(mesh, torch.zeros(1, 1, 32, 32))

    def run() -> Any:
        out = Out((1, 1, 32, 32), ttnn.bfloat16)
        later = launch("twice", [x], [out], lambda x: Twice(x + 1, x.shape), exact=True)
        return ttnn.add(later, x)

    trace, out = capture(mesh, run)
    for value in range(5):
        ttnn.copy_host_to_device_tensor(host(torch.full((1, 1, 32, 32), float(value))), x)
        ttnn.execute_trace(mesh, trace, cq_id=0)
        assert ttnn.to_torch(out).unique().tolist() == [2 * (value + 1) + value]
    assert mesh.traces[trace]._replay is not None


def test_what_python_made_in_one_step_and_gives_in_another_is_of_every_run(mesh: Any) -> None:
    x = put(mesh, torch.zeros(1, 1, 32, 32))
    kept: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[:] = [x * 3]
        return x + 1

    def run() -> Any:
        out = Out((1, 1, 32, 32), ttnn.bfloat16)
        first = launch("keep", [x], [out], keep, exact=True)
        second = launch("give", [first], [out], lambda x: kept[0], exact=True)
        return ttnn.add(first, second)

    trace, out = capture(mesh, run)
    for value in range(5):
        ttnn.copy_host_to_device_tensor(host(torch.full((1, 1, 32, 32), float(value))), x)
        ttnn.execute_trace(mesh, trace, cq_id=0)
        assert ttnn.to_torch(out).unique().tolist() == [4 * value + 1]
    assert mesh.traces[trace]._replay is not None


def test_buffers_that_python_writes_are_not_memory_of_a_list(mesh: Any) -> None:
    cache = ttnn.zeros([2, 1, 64, 32], ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh)
    x = put(mesh, torch.ones(1, 1, 32, 32))

    def run() -> Any:
        ttnn.fill_cache(cache, ttnn.add(x, x), 1)  # is no loop
        return ttnn.add(cache, cache)

    trace, out = capture(mesh, run)
    place = cache.data.data_ptr()
    for value in range(5):
        ttnn.fill_cache(cache, put(mesh, torch.full((1, 1, 32, 32), float(value))), 0)
        ttnn.execute_trace(mesh, trace, cq_id=0)
        found = ttnn.to_torch(out)
        assert found[0, :, :32].unique().tolist() == [2 * value]
        assert found[1, :, :32].unique().tolist() == [4] and not found[:, :, 32:].any()
    assert mesh.traces[trace]._replay is not None and cache.data.data_ptr() == place


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
