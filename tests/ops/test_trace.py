"""Traces: replay on the same tensors, with what their buffers hold then. Lists: test_replay.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import backends
from backends.mesh import open_mesh
from tests.ops.emulated import capture, host, put
from tests.ops.golden_cases import operand

backends.select("emulator")
ttnn: Any = backends.ttnn


@pytest.fixture(scope="module")
def mesh() -> Any:
    with open_mesh("N150") as device:
        yield device


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
