"""Emulated chips: a mesh with its core grid, its DRAM banks, and how much of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backends.device_specs import SPECS, DeviceSpec
from backends.emulator.tensor import Tensor
from backends.emulator.types import Arch, BufferType, CoreCoord, MeshShape

_state: dict[str, Any] = {"torch_device": "cpu", "spec": "N150"}


def configure(*, torch_device: str | None = None, device: str | None = None) -> None:
    """Choose where numbers live (cpu, cuda, or meta for none) and which product to emulate."""
    if torch_device is not None:
        if torch_device == "cuda" and not torch.cuda.is_available():
            raise ValueError("torch finds no CUDA device: use cpu or meta for the emulator")
        if torch_device not in ("cpu", "cuda", "meta"):
            raise ValueError(
                f"unknown emulator device {torch_device!r}: choose cpu, cuda or meta"
            )
        _state["torch_device"] = torch_device
    if device is not None:
        if device not in SPECS:
            raise ValueError(f"unknown device {device!r}: choose one of {', '.join(SPECS)}")
        _state["spec"] = device


@dataclass(frozen=True)
class MemoryView:
    """DRAM or L1 of one chip, per bank, in bytes."""

    num_banks: int
    total_bytes_per_bank: int
    total_bytes_allocated_per_bank: int

    @property
    def total_bytes_free_per_bank(self) -> int:
        return self.total_bytes_per_bank - self.total_bytes_allocated_per_bank


class Allocation:
    """Bytes of one buffer, given back once."""

    __slots__ = ("pool", "size", "alive")

    def __init__(self, pool: Pool, size: int) -> None:
        self.pool, self.size, self.alive = pool, size, True

    def free(self) -> None:
        if self.alive:
            self.alive = False
            self.pool.allocated -= self.size


class Pool:
    """The banks of one memory of one chip; chips of a mesh allocate alike."""

    def __init__(self, name: str, banks: int, bank_bytes: int) -> None:
        self.name, self.banks, self.bank_bytes = name, banks, bank_bytes
        self.allocated = 0
        self.peak = 0

    def take(self, size: int) -> Allocation:
        """Reserve `size` bytes over all banks; a full memory refuses in TT-NN's words."""
        total = self.banks * self.bank_bytes
        if self.allocated + size > total:
            per_bank = -(-size // self.banks)
            taken = self.allocated // self.banks
            raise RuntimeError(
                f"TT_FATAL: Out of Memory: Not enough space to allocate {size} B {self.name} "
                f"buffer across {self.banks} banks, where each bank needs to store {per_bank} B, "
                f"but bank size is {self.bank_bytes} B (allocated: {taken} B, free: "
                f"{self.bank_bytes - taken} B)"
            )
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        return Allocation(self, size)


class MeshDevice:
    """A mesh of emulated chips of one product."""

    def __init__(self, spec: DeviceSpec, shape: Sequence[int], torch_device: str) -> None:
        self.spec, self.shape = spec, MeshShape(*shape)
        self.torch_device = torch_device
        self.dram = Pool("DRAM", spec.dram_banks, spec.dram_bank_bytes)
        columns, rows = spec.compute_grid
        self.l1 = Pool("L1", columns * rows, spec.l1_free_bytes)
        self.draws = torch.Generator(device="cpu" if torch_device == "meta" else torch_device)
        self.traces: dict[int, Any] = {}
        self.capturing: Any = None

    @property
    def is_meta(self) -> bool:
        return self.torch_device == "meta"

    def get_num_devices(self) -> int:
        return self.shape.mesh_size()

    def compute_with_storage_grid_size(self) -> CoreCoord:
        return CoreCoord(*self.spec.compute_grid)

    def dram_grid_size(self) -> CoreCoord:
        return CoreCoord(self.spec.dram_banks, 1)

    def arch(self) -> Arch:
        return Arch.BLACKHOLE if self.spec.arch == "blackhole" else Arch.WORMHOLE_B0

    def reshape(self, shape: MeshShape) -> None:
        """The same chips in another arrangement; nothing may be on them yet."""
        if shape.mesh_size() != self.get_num_devices():
            raise RuntimeError(f"TT_FATAL: {self.shape} cannot become {shape}")
        self.shape = shape

    def create_submesh(self, shape: MeshShape, offset: Any = None) -> MeshDevice:
        """Part of the mesh, with memory of its own."""
        return MeshDevice(self.spec, tuple(shape), self.torch_device)

    def create_submeshes(self, shape: MeshShape) -> list[MeshDevice]:
        """The mesh cut into equal parts."""
        count, rest = divmod(self.get_num_devices(), shape.mesh_size())
        if rest:
            raise RuntimeError(
                f"TT_FATAL: a mesh of {self.shape} does not divide into parts of {shape}"
            )
        return [self.create_submesh(shape) for _ in range(count)]

    def allocate(self, tensor: Tensor) -> None:
        """Account for a tensor's buffer until it is deallocated or forgotten."""
        memory = tensor.memory_config()
        if memory.buffer_type is BufferType.DRAM:
            allocation = self.dram.take(tensor.buffer_bytes())
            tensor._allocation = allocation


def open_mesh_device(
    mesh_shape: MeshShape | None = None,
    l1_small_size: int = 0,
    trace_region_size: int = 0,
    num_command_queues: int = 1,
    dispatch_core_config: Any = None,
    offset: Any = None,
    physical_device_ids: Any = None,
    worker_l1_size: int = 0,
) -> MeshDevice:
    """Open a mesh of the configured product; a smaller shape uses fewer of its chips."""
    spec = SPECS[_state["spec"]]
    rows, cols = tuple(mesh_shape) if mesh_shape is not None else spec.mesh_shape
    have_rows, have_cols = spec.mesh_shape
    if rows * cols > have_rows * have_cols:
        raise RuntimeError(
            f"TT_FATAL: Requested mesh shape MeshShape([{rows}, {cols}]) requires {rows * cols} "
            f"devices, but only {have_rows * have_cols} devices are available in the system mesh"
        )
    return MeshDevice(spec, (rows, cols), _state["torch_device"])


def close_mesh_device(mesh_device: MeshDevice) -> None:
    """Forget traces; buffers go with their tensors."""
    mesh_device.traces.clear()


def get_memory_view(device: MeshDevice, buffer_type: BufferType) -> MemoryView:
    """What is taken of a chip's DRAM or L1."""
    pool = device.dram if buffer_type is BufferType.DRAM else device.l1
    return MemoryView(pool.banks, pool.bank_bytes, pool.allocated // pool.banks)


def synchronize_device(mesh_device: MeshDevice, cq_id: int | None = None) -> None:
    """Wait for work in flight (on CUDA there is some)."""
    if mesh_device.torch_device == "cuda":
        torch.cuda.synchronize()
