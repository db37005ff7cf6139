"""Tensors: what they show of themselves, where their values are, when memory is full."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import backends
from backends.device_specs import SPECS
from backends.emulator.loops import native
from backends.emulator.numerics import tiles
from backends.emulator.ops import files
from backends.mesh import open_mesh

backends.select("emulator")
ttnn: Any = backends.ttnn
GIB = 1 << 30


@pytest.fixture(scope="module")
def mesh() -> Any:
    with open_mesh("T3K_2x4") as device:
        yield device


def test_attributes_are_those_of_a_ttnn_tensor(mesh: Any) -> None:
    x = ttnn.zeros([1, 1, 20, 40], ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh)
    assert x.shape == [1, 1, 20, 40] and x.shape.rank == 4 and x.shape[-1] == 40
    assert str(x.shape) == "Shape([1, 1, 20, 40])" and tuple(x.padded_shape) == (1, 1, 32, 64)
    assert (x.volume(), x.logical_volume()) == (2048, 800)
    assert str(x.dtype) == "DataType.BFLOAT16" and str(x.layout) == "Layout.TILE"
    assert str(x.memory_config()) == (
        "MemoryConfig(memory_layout=TensorMemoryLayout::INTERLEAVED,buffer_type=BufferType::DRAM,"
        "shard_spec=std::nullopt,nd_shard_spec=std::nullopt,created_with_nd_shard_spec=0,"
        "per_core_allocation=0,range_lockstep_allocation=0)"
    )
    assert x.device() is mesh and not x.is_sharded() and x.is_allocated()


CUTS = [((None, None), (1, 1)), ((2, 3), (2, 4)), ((3, None), (2, 1)), ((None, -2), (1, 4))]


@pytest.mark.parametrize(("dims", "stored"), CUTS)
def test_a_mesh_dim_is_one_where_chips_agree_and_every_chip_has_its_part(
    dims: tuple[int | None, int | None], stored: tuple[int, int], mesh: Any
) -> None:
    whole = torch.arange(64 * 32, dtype=torch.float32).reshape(1, 1, 64, 32)
    x = ttnn.from_torch(whole, device=mesh, mesh_mapper=ttnn.ShardTensor2dMesh(mesh, (2, 4), dims))
    assert tuple(x.data.shape[:2]) == stored
    parts = ttnn.get_device_tensors(x)
    assert len(parts) == 8
    for index, part in enumerate(parts):
        expected = whole
        for dim, at, count in zip(dims, divmod(index, 4), (2, 4), strict=True):
            if dim is not None:
                expected = expected.chunk(count, dim)[at]
        assert torch.equal(ttnn.to_torch(part), expected)


def test_composers_undo_mappers(mesh: Any) -> None:
    whole = torch.randn(2, 1, 8, 64)
    x = ttnn.from_torch(
        whole, device=mesh, mesh_mapper=ttnn.ShardTensor2dMesh(mesh, (2, 4), (0, 3))
    )
    back = ttnn.to_torch(x, mesh_composer=ttnn.ConcatMesh2dToTensor(mesh, (2, 4), (0, 3)))
    assert torch.equal(back, whole)
    copies = ttnn.from_torch(whole, device=mesh, mesh_mapper=ttnn.ReplicateTensorToMesh(mesh))
    both = ttnn.to_torch(copies, mesh_composer=ttnn.ConcatMesh2dToTensor(mesh, (2, 4), (0, 3)))
    assert torch.equal(both, whole.repeat(2, 1, 1, 4))
    with pytest.raises(RuntimeError, match="mesh_composer"):
        ttnn.to_torch(x)


@pytest.mark.parametrize(
    "name", ["bfloat16", "bfloat8_b", "bfloat4_b", "float32", "int32", "uint16"]
)
def test_values_survive_a_round_trip_and_come_back_in_the_wheels_torch_type(
    name: str, mesh: Any
) -> None:
    values = torch.tensor([[0.0, 1.0, 2.0, -3.0 if "u" not in name else 3.0]]).repeat(32, 8)
    x = ttnn.from_torch(values, dtype=getattr(ttnn, name), layout=ttnn.TILE_LAYOUT, device=mesh)
    back = ttnn.to_torch(ttnn.from_device(x))
    types = {"bfloat16": torch.bfloat16, "int32": torch.int32, "uint16": torch.uint16}
    assert back.dtype is types.get(name, torch.float32)
    assert torch.equal(back.float(), values)


def test_a_device_tensor_does_not_follow_the_host_tensor_it_came_from(mesh: Any) -> None:
    source = torch.ones(4, dtype=torch.int32)
    x = ttnn.from_torch(source, device=mesh)
    source += 1
    assert ttnn.to_torch(x).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("rows", [128, 131200])  # the second is written past the page cache
def test_a_file_gives_back_values_type_cut_and_orientation(
    rows: int, tmp_path: Path, mesh: Any
) -> None:
    stored = torch.randn(rows, 64)
    host = ttnn.from_torch(
        stored.T[None, None],
        dtype=ttnn.bfloat8_b,
        layout=ttnn.TILE_LAYOUT,
        mesh_mapper=ttnn.ShardTensor2dMesh(mesh, (2, 4), (None, 3)),
    )
    ttnn.dump_tensor(tmp_path / "w.tensorbin", host)
    back = ttnn.load_tensor(tmp_path / "w.tensorbin")
    assert torch.equal(back.data, host.data) and back.data.stride() == host.data.stride()
    assert (back.dtype, back.layout, back.shape) == (host.dtype, host.layout, host.shape)
    content = load_file(tmp_path / "w.tensorbin")  # a file like others
    size = sum(tensor.nbytes for tensor in content.values())
    assert size < (stored.numel() if native.library() else 2.1 * stored.numel()) * 1.2


@pytest.mark.skipif(native.library() is None, reason="nothing packs without a C compiler")
def test_packed_files_for_other_loops_or_with_tiles_beyond_their_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = ttnn.from_torch(torch.randn(1, 1, 64, 64).mT, dtype=ttnn.bfloat4_b)
    ttnn.dump_tensor(tmp_path / "w", weight)
    assert torch.equal(ttnn.load_tensor(tmp_path / "w").data, weight.data)
    for other in (None, 7):
        with monkeypatch.context() as patched:
            patched.setattr(files, "packing", lambda other=other: other)
            with pytest.raises(ValueError, match="packed for the loops of another processor"):
                ttnn.load_tensor(tmp_path / "w")
    monkeypatch.setattr(files, "packed", lambda data: beyond)
    beyond = tiles.packed(weight.data)
    beyond.store.spans[0, 0, 1, 0] += 1
    ttnn.dump_tensor(tmp_path / "beyond", weight)
    with pytest.raises(ValueError, match="beyond its end"):
        ttnn.load_tensor(tmp_path / "beyond")


def test_a_disk_that_fills_up_is_an_error_and_a_file_system_may_lack_direct_writes(
    tmp_path: Path, mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = ttnn.from_torch(torch.ones(1, 1, 9 << 10, 1 << 10), dtype=ttnn.bfloat16)
    real = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *mode)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        ttnn.dump_tensor(tmp_path / "plain", host)
    assert torch.equal(ttnn.load_tensor(tmp_path / "plain").data, host.data)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 << 20, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            ttnn.dump_tensor(tmp_path / "half", host)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)


def test_full_dram_is_refused_in_ttnns_words_and_freed_memory_can_be_used() -> None:
    with open_mesh("N150") as device:
        shape = [1, 1, 32768, 65536]  # 4 GiB of 12
        held = [ttnn.empty(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, device) for _ in range(2)]
        with pytest.raises(RuntimeError, match="Out of Memory: Not enough space to allocate 4"):
            ttnn.empty(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, device)
        ttnn.deallocate(held[0])
        with pytest.raises(RuntimeError, match="allocated in buffers"):
            ttnn.add(held[0], 1.0)
        again = ttnn.empty(shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, device)
        del held, again
        view = ttnn.get_memory_view(device, ttnn.BufferType.DRAM)
        assert view.total_bytes_allocated_per_bank == 0 and view.num_banks == 12


def test_meta_tensors_have_placements_and_no_values() -> None:
    ttnn.configure(torch_device="meta")
    try:
        with open_mesh("TG") as device:
            w = ttnn.empty([1, 1, 8192, 28672], ttnn.bfloat8_b, ttnn.TILE_LAYOUT, device)
            out = ttnn.linear(
                ttnn.empty([1, 1, 32, 8192], layout=ttnn.TILE_LAYOUT, device=device), w
            )
            assert out.data is None and out.shape == [1, 1, 32, 28672]
            assert ttnn.to_torch(ttnn.get_device_tensors(out)[31]).shape == (1, 1, 32, 28672)
    finally:
        ttnn.configure(torch_device="cpu")


def test_operands_of_two_meshes_and_of_the_host_are_refused() -> None:
    with open_mesh("N150") as one, open_mesh("N150") as other:
        x, y = (ttnn.zeros([32, 32], layout=ttnn.TILE_LAYOUT, device=d) for d in (one, other))
        with pytest.raises(RuntimeError, match="same device"):
            ttnn.add(x, y)
        with pytest.raises(RuntimeError, match="on device"):
            ttnn.add(ttnn.from_device(x), x)


@pytest.mark.parametrize("name", SPECS)
def test_every_product_opens_with_its_grid_and_memory(name: str) -> None:
    with open_mesh(name) as device:
        grid = device.compute_with_storage_grid_size()
        assert (grid.x, grid.y) == SPECS[name].compute_grid
        assert device.get_num_devices() == SPECS[name].num_chips
        with pytest.raises(RuntimeError, match="devices are available in the system mesh"):
            ttnn.open_mesh_device(ttnn.MeshShape(8, 8))


def test_what_is_not_written_takes_no_memory(mesh: Any) -> None:
    """Pages of users lie all over a cache: a megabyte for each few bytes would be most of it."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    cache = ttnn.zeros([1, 1, 8192, 2048], ttnn.bfloat16, ttnn.TILE_LAYOUT, mesh)  # 256 MiB
    cache.data.view(-1)[:: 1 << 21] = 1  # a number of each 4 MiB
    assert resident() - before < 16 << 20
    assert float(cache.data.float().sum()) == 64
