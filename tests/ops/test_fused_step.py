"""Ops of a fused decode step: bit for bit what the ops they stand for do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from backends.device_specs import SPECS
from backends.emulator.chip.device import MeshDevice
from backends.mesh import open_mesh
from backends.op_record import record_ops
from models.collectives import Links
from models.collectives_fused import FusedMesh
from models.collectives_kept import KeptCollectives, KeptResults
from models.plans.fused import (
    fused_grid,
    idle_cores,
    joined_memory,
    on_ring,
    rectangle_of,
    ring_cores,
    shard,
    sharded,
    worker_cores,
)
from models.plans.target import Target
from models.precision import ModelPrecision
from models.prefetch import receivers_of
from models.registry import load_config
from tests.ops.emulated import EXACT, ROUNDED, get, put, ttnn
from tests.ops.golden_cases import operand
from tests.ops.test_decode_together import replayed

SPEC = SPECS["TG"]
COLUMN = SPEC.from_column()
ROWS, COLS = SPEC.mesh_shape
K, N = 24 * 32, 2 * 24 * 32  # whole tiles on a ring of 24 cores


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with open_mesh("TG") as device:
        yield device


def apart(mesh: Any, rows: int, columns: int, dtype: Any, memory: Any, seed: int) -> Any:
    """A tensor with values of its own on every chip."""
    whole = operand(ROWS, COLS, rows, columns, seed=seed)
    return put(mesh, whole, dtype, dims=(0, 1), memory=memory)


@pytest.fixture(scope="module")
def from_column() -> Iterator[Any]:
    with open_mesh("TG", from_column=True) as device:
        yield device


def run_both(mesh: Any, run: Callable[[], Any], *, traced: bool) -> Any:
    return replayed(mesh, run) if traced else run()


def weight_memory(columns: int) -> Any:
    banks = ttnn.CoreRangeSet(
        [ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(SPEC.dram_banks - 1, 0))]
    )
    shard = ttnn.ShardSpec(banks, [K, columns // SPEC.dram_banks], ttnn.ShardOrientation.ROW_MAJOR)
    return ttnn.MemoryConfig(ttnn.TensorMemoryLayout.WIDTH_SHARDED, ttnn.BufferType.DRAM, shard)


class Products:
    """Operands of two products on the ring, and the arguments of both forms."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self.x = apart(mesh, 32, K, ttnn.bfloat16, on_ring(K, SPEC), seed=1)
        self.weights = [
            apart(mesh, K, N, ttnn.bfloat4_b, weight_memory(N), seed=seed) for seed in (2, 3)
        ]
        packets = sharded(idle_cores(8, SPEC), 512)
        width = 8 * 512
        self.packets = ttnn.empty(
            [1, 1, 32, width], ttnn.bfloat8_b, ttnn.TILE_LAYOUT, mesh, packets
        )
        cores = worker_cores(N // COLS // 32, SPEC)
        self.scattered = sharded(cores, 32)
        self.semaphore = ttnn.create_global_semaphore(mesh, ring_cores(SPEC), 0)
        self.buffer = ttnn.create_global_circular_buffer(mesh, receivers_of(SPEC), 728 * 1088)
        self.product = {
            "program_config": ttnn.MatmulMultiCoreReuseMultiCast1DProgramConfig(
                compute_with_storage_grid_size=SPEC.compute_grid,
                in0_block_w=1,
                out_subblock_h=1,
                out_subblock_w=2,
                per_core_M=1,
                per_core_N=2,
                fuse_batch=True,
                fused_activation=None,
                mcast_in0=False,
                gather_in0=True,
                num_global_cb_receivers=2,
            ),
            "compute_kernel_config": ttnn.WormholeComputeKernelConfig(
                math_fidelity=ttnn.MathFidelity.LoFi
            ),
            "dtype": ttnn.bfloat8_b,
            "global_cb": self.buffer,
        }

    def fused(self, packets: Any = None) -> tuple[Any, Any, Any]:
        return ttnn.experimental.llama_rs_matmul(
            self.x, self.weights[0], packets or self.packets, 3, self.semaphore, 1, self.mesh, 3,
            ttnn.SubDeviceId(0), second_weight_tensor=self.weights[1],
            topology=ttnn.Topology.Ring, memory_config_rs=self.scattered,
            memory_config_mm=on_ring(N, SPEC), **self.product,
        )  # fmt: skip

    def apart(self) -> tuple[Any, Any, Any]:
        first, second = (
            ttnn.linear(self.x, w, memory_config=on_ring(N, SPEC), **self.product)
            for w in self.weights
        )
        scattered = ttnn.experimental.llama_reduce_scatter(
            first, self.packets, 3, self.semaphore, ttnn.SubDeviceId(0), 1, self.mesh,
            num_links=3, memory_config=self.scattered, topology=ttnn.Topology.Ring,
        )  # fmt: skip
        return first, second, scattered


@pytest.fixture(scope="module")
def products(mesh: Any) -> Products:
    return Products(mesh)


@pytest.mark.parametrize("traced", [False, True])
def test_products_with_a_scatter_are_those_of_three_ops(products: Products, traced: bool) -> None:
    found = run_both(products.mesh, products.fused, traced=traced)
    for one, other in zip(found, products.apart(), strict=True):
        assert torch.equal(one.data, other.data)
        assert (one.dtype, one.memory_config()) == (other.dtype, other.memory_config())
        assert one.shape == other.shape


def test_products_with_a_scatter_cost_what_three_ops_cost(products: Products) -> None:
    with record_ops() as one:
        products.fused()
    with record_ops() as three:
        products.apart()
    for part in ("flops", "dram_bytes", "link_bytes"):
        assert getattr(one[0].cost, part) == sum(getattr(r.cost, part) for r in three)


def test_packets_must_lie_in_shards_of_a_tile_row(mesh: Any, products: Products) -> None:
    packets = put(mesh, operand(1, 1, 32, 4096, seed=4))
    with pytest.raises(RuntimeError, match="must have a shard spec"):
        products.fused(packets)


def test_packets_must_not_lie_where_scatters_send_from(mesh: Any, products: Products) -> None:
    cores = rectangle_of((5, 1), (6, 4))
    memory = sharded(ttnn.CoreRangeSet([cores]), 512)
    with pytest.raises(RuntimeError, match="which send them"):
        products.fused(put(mesh, operand(1, 1, 32, 4096, seed=4), memory=memory))


@pytest.mark.parametrize("each", [1, 2, 3, 4, 5])
def test_tiles_of_a_core_must_part_a_packet_evenly(
    mesh: Any, products: Products, each: int
) -> None:
    width = each * N // 2
    x = apart(mesh, 32, width, ttnn.bfloat8_b, on_ring(width, SPEC), seed=10)
    memory = sharded(worker_cores(width // COLS // 32, SPEC), 32)

    def scatter() -> Any:
        return ttnn.experimental.llama_reduce_scatter(
            x, products.packets, 3, products.semaphore, ttnn.SubDeviceId(0), 1, mesh,
            num_links=3, memory_config=memory, topology=ttnn.Topology.Ring,
        )  # fmt: skip

    if each == 3:
        with pytest.raises(RuntimeError, match="num_pages per packet divisible"):
            scatter()
    else:
        assert scatter().shape == (1, 1, 32, width // COLS)


def test_queries_that_columns_share_have_the_format_of_keys(mesh: Any) -> None:
    q, k, v = (apart_heads(mesh, 1, 512, 64, seed) for seed in (5, 6, 7))
    q = ttnn.typecast(q, dtype=ttnn.bfloat8_b)
    with pytest.raises(RuntimeError, match="same dtype"):
        ttnn.transformer.ring_distributed_scaled_dot_product_attention(q, k, v, COLS)


@pytest.mark.parametrize("start", [0, 256])
def test_queries_that_columns_share_attend_as_one_chip_does(mesh: Any, start: int) -> None:
    length, heads, width, size = 512, 4, 64, 32
    q, k, v = (
        apart_heads(mesh, count, start + length, width, seed)
        for seed, count in ((5, heads), (6, 1), (7, 1))
    )
    how = {"scale": 0.125, "compute_kernel_config": EXACT}
    whole = ttnn.transformer.scaled_dot_product_attention(q, k, v, is_causal=True, **how)
    wanted = get(whole)[:, :, start:]
    if start:
        pages = torch.randperm(2 * (start + length) // size)[: (start + length) // size]
        table = put(mesh, pages[None].to(torch.int32))
        caches = [
            ttnn.zeros([2 * (start + length) // size, 1, size, width], ttnn.bfloat16,
                       ttnn.TILE_LAYOUT, mesh, ttnn.DRAM_MEMORY_CONFIG)
            for _ in range(2)
        ]  # fmt: skip
        for cache, new in zip(caches, (k, v), strict=True):
            ttnn.experimental.paged_fill_cache(cache, new, table, batch_idx=0)
        q = ttnn.slice(q, [0, 0, start, 0], [1, heads, start + length, width])
        k, v = caches
        how |= {"page_table": table, "chunk_start_idx": start}
    found = ttnn.transformer.ring_distributed_scaled_dot_product_attention(q, k, v, COLS, **how)
    pieces = wanted.chunk(2 * COLS, dim=2)
    for column in range(COLS):
        own = torch.cat([pieces[column], pieces[2 * COLS - 1 - column]], dim=2)
        torch.testing.assert_close(get(found, (0, column)), own, **ROUNDED)


def apart_heads(mesh: Any, heads: int, length: int, width: int, seed: int) -> Any:
    return put(mesh, operand(1, heads, length, width, seed=seed))


def test_the_last_chip_comes_first_where_a_gather_is_reversed(mesh: Any) -> None:
    x = apart(mesh, 32, 128, ttnn.bfloat16, None, seed=8)
    semaphores = [ttnn.create_global_semaphore(mesh, ring_cores(SPEC), 0) for _ in range(2)]
    found = ttnn.experimental.all_gather_async_reversed(
        x, 2, 1, mesh, ttnn.Topology.Ring, semaphores, num_links=3
    )
    parts = [get(x, (3, column)) for column in reversed(range(COLS))]
    assert torch.equal(get(found, (3, 1)), torch.cat(parts, dim=2))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("traced", [False, True])
def test_kept_sums_are_those_of_one_op(mesh: Any, axis: int, traced: bool) -> None:
    x = apart(mesh, 64, 512, ttnn.bfloat8_b, None, seed=9)
    kept = KeptCollectives(mesh, Links((4, 3), ring=True))
    kept.results = KeptResults()
    kept.total(x, axis, "WO")  # makes the buffers
    found = run_both(mesh, lambda: kept.total(x, axis, "WO"), traced=traced)
    wanted = ttnn.all_reduce(x, cluster_axis=axis)
    for chip in ((0, 0), (3, 1), (7, 3)):
        assert torch.equal(get(found, chip), get(wanted, chip))
    assert kept.results.holds(found)
    assert not kept.results.holds(x)


class Heads:
    """Heads of 8 users a column in rows, and both ways to join those of all users."""

    def __init__(self, mesh: Any, *, at_once: bool) -> None:
        memory = sharded(worker_cores(8, COLUMN), 128, by_height=True)
        whole = operand(ROWS, COLS * 8, 8, 128, seed=11)
        self.heads = put(mesh, whole, dims=(0, 1), rows=True, memory=memory)
        self.memory = joined_memory(target(mesh))
        self.mesh = FusedMesh(
            target(mesh).sharding,
            Links((4, 3), ring=True),
            mesh,
            dataclasses.replace(fused_grid(target(mesh)), joins_at_once=at_once),
            ttnn.bfloat8_b,
        )

    def join(self) -> Any:
        return self.mesh.join_heads(self.heads, self.memory)


def target(mesh: Any) -> Target:
    config = load_config("Llama-3.3-70B")
    precision = ModelPrecision.preset("performance", config)
    sizes = shard(config, (ROWS, COLS), SPEC)
    return Target(COLUMN, mesh.arch(), sizes, precision.layer(0), batch=32, prefetch=True)


@pytest.mark.parametrize("traced", [False, True])
def test_heads_joined_at_once_are_those_of_three_ops(from_column: Any, traced: bool) -> None:
    one, three = (Heads(from_column, at_once=at_once) for at_once in (True, False))
    with record_ops() as records:
        found = run_both(from_column, one.join, traced=traced)
    with record_ops() as apart:
        wanted = three.join()
    assert {r.name for r in records} == {"experimental.all_gather_concat"}
    assert len(apart) == 3 and records[0].cost and apart[0].cost
    assert 2 * records[0].cost.link_bytes == apart[0].cost.link_bytes, "a ring sends both ways"
    assert found.memory_config() == wanted.memory_config()
    for chip in ((0, 0), (3, 1), (7, 3)):
        assert torch.equal(get(found, chip), get(wanted, chip))
    users = get(found, (3, 1))[0, 0]
    own = get(one.heads, (3, 2))[0]
    assert torch.equal(users[16:24], own.flatten(1)), "a column's users stay together"


@pytest.mark.parametrize("traced", [False, True])
def test_rows_are_gathered_into_the_tensor_that_is_kept(mesh: Any, traced: bool) -> None:
    rows = ttnn.untilize(apart(mesh, 32, 128, ttnn.bfloat16, None, seed=10))
    kept, narrow = (
        ttnn.empty(
            (1, 1, count, 128), ttnn.bfloat16, ttnn.ROW_MAJOR_LAYOUT, mesh, ttnn.DRAM_MEMORY_CONFIG
        )
        for count in (32 * COLS, 32)
    )
    found = run_both(
        mesh, lambda: ttnn.all_gather(rows, 2, cluster_axis=1, output_tensor=kept), traced=traced
    )
    assert found.buffer_address() == kept.buffer_address()
    parts = [get(rows, (3, column)) for column in range(COLS)]
    for tensor in (found, kept):
        assert torch.equal(get(tensor, (3, 1)), torch.cat(parts, dim=2))
    with pytest.raises(RuntimeError, match="output tensor has to be"):
        ttnn.all_gather(rows, 2, cluster_axis=1, output_tensor=narrow)


def test_chips_with_other_cores_than_a_ring_knows_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A core's place says which DRAM bank it is beside."""
    found = ttnn.CoreCoord(7, 9)
    monkeypatch.setattr(MeshDevice, "compute_with_storage_grid_size", lambda mesh: found)
    with (
        pytest.raises(ValueError, match="TG was opened with 7x9 cores, but a model on a ring"),
        open_mesh("TG", from_column=True),
    ):
        pass
