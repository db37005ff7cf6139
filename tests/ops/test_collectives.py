"""Collectives on 2D meshes and lines: goldens, chips that share values, roundings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from backends.device_specs import SPECS
from backends.mesh import open_mesh
from backends.op_record import record_ops
from models.collectives import Links
from models.collectives_beside import ProductsBeside
from models.collectives_kept import semaphores
from models.plans.matmul import prefill_linear, sliced_linear
from tests.ops.emulated import EXACT, ROUNDED, get, put, ttnn
from tests.ops.golden_cases import operand
from tests.ops.model_golden_cases import ALONG, MESH, operands
from tests.ops.wheel_model_ops import answers

CHIPS = operands()["chips"]  # [rows, columns, 1, 1, 32, 64]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with open_mesh("T3K_2x4") as device:
        assert tuple(device.shape) == MESH
        yield device


def apart(mesh: Any) -> Any:
    """A tensor with values of its own on every chip."""
    whole = torch.cat([torch.cat(list(row), dim=1) for row in CHIPS], dim=0)
    return put(mesh, whole, dims=(0, 1))


def together(out: Any, axis: int | None, name: str) -> torch.Tensor:
    """Chips' parts as the golden functions put them together."""
    rows, cols = MESH
    dims: list[int | None] = [0, 1]
    for one in (0, 1) if axis is None else (axis,):
        dims[one] = {"reduce_scatter": 3, "all_reduce": None, "all_gather": dims[one]}[name]
    parts = [[get(out, (r, c)) for c in range(cols)] for r in range(rows)]
    lines = [row[0] if dims[1] is None else torch.cat(row, dims[1]) for row in parts]
    return lines[0] if dims[0] is None else torch.cat(lines, dims[0])


@pytest.mark.parametrize("axis", ALONG)
@pytest.mark.parametrize("name", ["all_gather", "reduce_scatter", "all_reduce"])
def test_values_equal_the_wheels_golden_functions(mesh: Any, name: str, axis: int | None) -> None:
    if name == "all_gather" and axis is None:
        with pytest.raises(RuntimeError, match="requires cluster_axis"):
            ttnn.all_gather(apart(mesh), 3)
        return
    given = {} if name == "all_reduce" else {"dim": 3}
    out = getattr(ttnn, name)(apart(mesh), cluster_axis=axis, **given)
    wanted = answers()["goldens"][f"{name} along {axis}"]
    torch.testing.assert_close(together(out, axis, name), wanted, **ROUNDED)


@pytest.mark.parametrize("axis", [0, 1])
def test_chips_that_share_values_count_each(mesh: Any, axis: int) -> None:
    values = operand(1, 1, 32, 64, seed=1)
    x, count = put(mesh, values), MESH[axis]
    gathered = get(ttnn.all_gather(x, 2, cluster_axis=axis))
    assert torch.equal(gathered, torch.cat([values] * count, dim=2))
    summed = ttnn.all_reduce(x, cluster_axis=axis)
    assert torch.equal(get(summed), values * count)
    for chip in range(count):
        at = (chip, 0) if axis == 0 else (0, chip)
        own = get(ttnn.reduce_scatter(x, 3, cluster_axis=axis), at)
        assert torch.equal(own, (values * count).chunk(count, dim=3)[chip])


@pytest.mark.parametrize("axis", ALONG)
def test_a_part_is_the_chips_own_slice(mesh: Any, axis: int | None) -> None:
    shared = put(mesh, operand(1, 1, 32, 256, seed=2))
    both = ttnn.mesh_partition(shared, 3, axis)
    own = ttnn.mesh_partition(apart(mesh), 3, axis)
    for r in range(MESH[0]):
        for c in range(MESH[1]):
            index = {None: r * MESH[1] + c, 0: r, 1: c}[axis]
            count = {None: 8, 0: 2, 1: 4}[axis]
            assert torch.equal(get(both, (r, c)), get(shared).chunk(count, 3)[index])
            assert torch.equal(get(own, (r, c)), CHIPS[r, c].chunk(count, 3)[index])


def test_gathering_parts_gives_the_whole(mesh: Any) -> None:
    x = put(mesh, operand(1, 1, 32, 256, seed=3))
    parts = ttnn.mesh_partition(x, -1, 1)
    assert torch.equal(get(ttnn.all_gather(parts, -1, cluster_axis=1)), get(x))


def test_sums_are_rounded_once(mesh: Any) -> None:
    """1 + 3 * 2^-8 survives in float32, each partial sum in bfloat16 would lose it."""
    values = torch.full((1, 1, 32, 128), 2.0**-8)
    values[..., :32] = 1
    out = ttnn.all_reduce(put(mesh, values, dims=(None, 3)), cluster_axis=1)
    assert get(out).unique().tolist() == [1 + 2**-6]  # 1.01171875, to bfloat16's nearest


def test_results_keep_the_format_and_bytes_on_links_are_counted() -> None:
    with open_mesh("T3K") as line, record_ops() as records:
        x = put(line, operand(1, 1, 32, 512, seed=4), ttnn.bfloat8_b, dims=(None, 3))
        assert ttnn.all_gather(x, 3).dtype is ttnn.bfloat8_b
        ttnn.all_gather(x, 3, topology=ttnn.Topology.Ring)
    part = 2 * 1088  # two bfloat8_b tiles
    assert [r.cost.link_bytes for r in records if r.cost] == [7 * part, 7 * part / 2]


def _in_shards(width: int, cores: int = 8) -> Any:
    return ttnn.create_sharded_memory_config(
        (32, width // cores),
        ttnn.CoreGrid(x=cores, y=1),
        ttnn.ShardStrategy.WIDTH,
        ttnn.ShardOrientation.ROW_MAJOR,
        use_height_and_width_as_shard_shape=True,
    )


def _summed_in_place(line: Any, x: Any, *, room: Any = None, **options: Any) -> Any:
    chips, width = line.shape[1], x.shape[-1]
    buffer = ttnn.empty(
        [1, 1, 32, chips * width],
        room or x.dtype,
        ttnn.TILE_LAYOUT,
        line,
        _in_shards(chips * width),
    )
    every = ttnn.CoreRangeSet([ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(7, 7))])
    semaphore = ttnn.create_global_semaphore(line, every, 0)
    return ttnn.experimental.all_reduce_async(
        ttnn.to_memory_config(x, _in_shards(width)),
        buffer,
        1,
        line,
        semaphore,
        memory_config=_in_shards(width),
        **options,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat8_b"])
@pytest.mark.parametrize("device", ["N300", "T3K"])
def test_a_sum_into_a_buffer_is_a_scatter_and_a_gather(device: str, dtype: str) -> None:
    """Bit for bit: both are rounded once, from the same parts."""
    with open_mesh(device) as line:
        chips = line.shape[1]
        values = operand(1, 1, 32 * chips, 512, seed=5)
        x = put(line, values, getattr(ttnn, dtype), dims=(None, 2))
        parts = ttnn.typecast(x, dtype=ttnn.bfloat16)  # exact: blocks hold fewer bits
        wanted = ttnn.all_gather(ttnn.reduce_scatter(parts, 3, cluster_axis=1), 3, cluster_axis=1)
        found = _summed_in_place(line, x, dtype=ttnn.bfloat16)
        assert found.dtype is ttnn.bfloat16
        for chip in range(chips):
            assert torch.equal(get(found, (0, chip)), get(wanted, (0, chip)))


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat8_b"])
def test_a_product_beside_its_scatter_is_the_product_and_the_scatter(dtype: str) -> None:
    """Bit for bit, in slices of 96 rows, for no more bytes and FLOPs than both ops state."""
    wide, k, n, spec = getattr(ttnn, dtype), 128, 512, SPECS["T3K"]
    how: dict[str, Any] = {"kernel": EXACT, "fp32": True, "dtype": wide, "spec": spec, "most": 96}
    plan = prefill_linear(288, k, n, **how)
    beside = prefill_linear(288, k, n, high=2, **how).kwargs
    plan = replace(plan, beside={**beside, "reduce_scatter_core_grid_offset": (0, 2)})
    with open_mesh("T3K", ring=True) as ring:
        x = put(ring, operand(1, 1, 288, 8 * k, seed=7), wide, dims=(None, 3))
        w = put(ring, operand(1, 1, 8 * k, n, seed=8), ttnn.bfloat8_b, dims=(None, 2))
        products = ProductsBeside(ring, Links(ring=True))
        with record_ops() as both:
            whole = sliced_linear(x, w, plan)
            wanted = ttnn.reduce_scatter(whole, 3, cluster_axis=1, topology=ttnn.Topology.Ring)
        with record_ops() as one, products.receiving([((1, 3, 96, n), wide)]):
            found = products.product(x, w, plan, ttnn.DRAM_MEMORY_CONFIG)
        assert (found.shape, found.dtype) == (wanted.shape, wide)
        for chip in range(8):
            assert torch.equal(get(found, (0, chip)), get(wanted, (0, chip)))
    for part in ("flops", "dram_bytes", "link_bytes"):
        assert sum(getattr(r.cost, part) for r in one) == sum(getattr(r.cost, part) for r in both)
    assert not products.rooms


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat8_b"])
def test_a_product_behind_its_gather_is_the_gather_and_the_product(dtype: str) -> None:
    """Bit for bit, for no more bytes of memory and FLOPs; the farthest part travels whole."""
    wide, k, n, rows = getattr(ttnn, dtype), 128, 512, 96
    how: dict[str, Any] = {"kernel": EXACT, "fp32": True, "dtype": wide, "spec": SPECS["T3K"]}
    plan = prefill_linear(rows, 8 * k, n, **how).kwargs
    with open_mesh("T3K", ring=True) as ring:
        x = put(ring, operand(1, 1, rows, 8 * k, seed=9), wide, dims=(None, 3))
        w = put(ring, operand(1, 1, 8 * k, 8 * n, seed=10), ttnn.bfloat8_b, dims=(None, 3))
        with record_ops() as both:
            whole = ttnn.all_gather(x, 3, cluster_axis=1, topology=ttnn.Topology.Ring)
            wanted = ttnn.linear(whole, w, **plan)
        room = ttnn.empty(list(whole.shape), wide, ttnn.TILE_LAYOUT, ring, ttnn.DRAM_MEMORY_CONFIG)
        arguments = dict(plan)
        with record_ops() as one:
            gathered, found = ttnn.experimental.all_gather_matmul_async(
                x,
                w,
                persistent_output_buffer=room,
                dim=3,
                multi_device_global_semaphore=semaphores(ring)[0][:2],
                all_gather_core_grid_offset=(0, 4),
                memory_config_mm=arguments.pop("memory_config"),
                **arguments,
            )
        assert (found.shape, found.dtype) == (wanted.shape, wide)
        assert gathered.buffer_address() == room.buffer_address()
        for chip in range(8):
            assert torch.equal(get(found, (0, chip)), get(wanted, (0, chip)))
            assert torch.equal(get(gathered, (0, chip)), get(whole, (0, chip)))
        for part in ("flops", "dram_bytes"):
            assert getattr(one[0].cost, part) == sum(getattr(r.cost, part) for r in both)
        assert one[0].cost.link_bytes == both[0].cost.link_bytes * 8 // 7


def test_a_sum_into_a_buffer_sends_every_part_to_every_chip() -> None:
    with open_mesh("T3K") as line, record_ops() as records:
        x = put(line, operand(1, 1, 32, 512, seed=6), ttnn.bfloat8_b)
        _summed_in_place(line, x)
        _summed_in_place(line, x, topology=ttnn.Topology.Ring)
        part = 16 * 1088
        sent = [r.cost.link_bytes for r in records if r.cost and "all_reduce_async" in r.name]
        assert sent == [7 * part, 7 * part / 2]
        with pytest.raises(RuntimeError, match="parts in BFLOAT16 do not fit a buffer"):
            wide = put(line, operand(1, 1, 32, 512, seed=6))
            _summed_in_place(line, wide, room=ttnn.bfloat8_b)
