"""Emulated chips: a mesh of one product, its core grid, its memories, its traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from backends import allocator
from backends.device_specs import SPECS, DeviceSpec
from backends.emulator.api.parts import check_apart
from backends.emulator.api.system import Arch, DispatchCoreAxis, MeshShape
from backends.emulator.api.types import BufferType, CoreCoord, CoreGrid
from backends.emulator.chip.memory import MemoryView, Pool
from backends.emulator.chip.tensor import Tensor

_TORCH_DEVICES = ("cpu", "cuda", "meta")
_state: dict[str, Any] = {"torch_device": "cpu", "spec": "N150"}


def configure(
    *, torch_device: str | None = None, device: str | None = None, threads: int | None = None
) -> None:
    """Choose where numbers live (cpu, cuda, or meta for none), by whom, and which product."""
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    if torch_device is not None:
        if torch_device not in _TORCH_DEVICES:
            raise ValueError(
                f"unknown emulator device {torch_device!r}: choose {', '.join(_TORCH_DEVICES)}"
            )
        if torch_device == "cuda" and not torch.cuda.is_available():
            raise ValueError("torch finds no CUDA device: use cpu or meta for the emulator")
        _state["torch_device"] = torch_device
    if device is not None:
        if device not in SPECS:
            raise ValueError(f"unknown device {device!r}: choose one of {', '.join(SPECS)}")
        _state["spec"] = device


USER_CORES = 32  # the sampling ops give each user one


class MeshDevice:
    """A mesh of emulated chips of one product."""

    def __init__(self, spec: DeviceSpec, shape: Sequence[int], torch_device: str) -> None:
        self.spec, self.shape = spec, MeshShape(*shape)
        self.torch_device = torch_device
        self.is_meta = torch_device == "meta"
        if torch_device == "cpu":
            allocator.keep_all()
        self.dram = Pool("DRAM", spec.dram_banks, 1, spec.dram_bank_bytes)
        self.l1 = Pool("L1", *spec.compute_grid, spec.l1_free_bytes)
        self.draws = [torch.Generator() for _ in range(USER_CORES)]  # a core's random numbers
        for stream in self.draws:
            stream.seed()
        self.capturing: Any = None  # the trace.Capture under way
        self.traces: dict[int, Any] = {}
        self.arenas = WeakValueDictionary[int, torch.Tensor]()  # that traces run in, see replay.py
        self._submeshes: list[MeshDevice] = []
        self._managers: list[Sequence[Any]] = []  # of sub-devices
        self.sub_devices: Sequence[Any] = ()  # that are loaded; none: programs run one by one

    def get_num_devices(self) -> int:
        return self.shape.mesh_size()

    def compute_with_storage_grid_size(self) -> CoreCoord:
        return CoreCoord(*self.spec.compute_grid)

    @property
    def core_grid(self) -> CoreGrid:
        return CoreGrid(*self.spec.compute_grid)

    def dram_grid_size(self) -> CoreCoord:
        return CoreCoord(self.spec.dram_banks, 1)

    def arch(self) -> Arch:
        return Arch.BLACKHOLE if self.spec.arch == "blackhole" else Arch.WORMHOLE_B0

    def num_program_cache_entries(self) -> int:
        return 0

    def reshape(self, shape: MeshShape) -> None:
        """The same chips in another arrangement; nothing may be on them yet."""
        if shape.mesh_size() != self.get_num_devices():
            raise RuntimeError(f"TT_FATAL: {self.shape} cannot become {shape}")
        self.shape = shape

    def create_submesh(self, shape: MeshShape, offset: Any = None) -> MeshDevice:
        """Part of the mesh, with memory of its own."""
        part = MeshDevice(self.spec, tuple(shape), self.torch_device)
        self._submeshes.append(part)
        return part

    def create_submeshes(self, shape: MeshShape) -> list[MeshDevice]:
        """The mesh cut into equal parts."""
        count, rest = divmod(self.get_num_devices(), shape.mesh_size())
        if rest:
            raise RuntimeError(
                f"TT_FATAL: a mesh of {self.shape} does not divide into parts of {shape}"
            )
        return [self.create_submesh(shape) for _ in range(count)]

    def create_sub_device_manager(self, sub_devices: Sequence[Any], local_l1_size: int) -> int:
        """A way to part every chip; refuses parts that share cores."""
        check_apart([part.cores[0] for part in sub_devices], self.spec.compute_grid)
        self._managers.append(sub_devices)
        return len(self._managers) - 1

    def load_sub_device_manager(self, sub_device_manager_id: int) -> None:
        self.sub_devices = self._managers[sub_device_manager_id]

    def clear_loaded_sub_device_manager(self) -> None:
        self.sub_devices = ()

    def get_submeshes(self) -> list[MeshDevice]:
        return list(self._submeshes)

    def pool(self, buffer_type: BufferType) -> Pool:
        return self.dram if buffer_type is BufferType.DRAM else self.l1

    def allocate(self, tensor: Tensor) -> None:
        """Account for a tensor's buffer until it is deallocated or forgotten."""
        memory = tensor.memory_config()
        pool = self.dram if memory.buffer_type is BufferType.DRAM else self.l1
        tensor._allocation = pool.take(tensor.dims, tensor.dtype, tensor.layout, memory)

    def __repr__(self) -> str:
        rows, cols = self.shape
        return f"MeshDevice({rows}x{cols} grid, {rows * cols} devices)"


def open_mesh_device(
    mesh_shape: MeshShape | None = None,
    l1_small_size: int = 0,
    trace_region_size: int = 0,
    num_command_queues: int = 1,
    dispatch_core_config: Any = None,
    offset: Any = None,
    physical_device_ids: Sequence[int] = (),
    worker_l1_size: int = 0,
) -> MeshDevice:
    """Open a mesh of the configured product; a smaller shape uses fewer of its chips."""
    spec = SPECS[_state["spec"]]
    if getattr(dispatch_core_config, "axis", None) is DispatchCoreAxis.COL:
        spec = spec.from_column()
    rows, cols = spec.mesh_shape if mesh_shape is None else tuple(mesh_shape)
    if rows * cols > spec.num_chips:
        raise RuntimeError(
            f"TT_FATAL: Requested mesh shape MeshShape([{rows}, {cols}]) requires {rows * cols} "
            f"devices, but only {spec.num_chips} devices are available in the system mesh"
        )
    return MeshDevice(spec, (rows, cols), _state["torch_device"])


def close_mesh_device(mesh_device: MeshDevice) -> None:
    """Forget traces; buffers go with their tensors."""
    mesh_device.traces.clear()
    mesh_device.capturing = None


def get_memory_view(device: MeshDevice, buffer_type: BufferType) -> MemoryView:
    """What is taken of a chip's DRAM or L1."""
    return device.pool(buffer_type).view()


def synchronize_device(
    device: MeshDevice, cq_id: int | None = None, sub_device_ids: Sequence[Any] = ()
) -> None:
    """Wait for work in flight (on CUDA there is some)."""
    if device.torch_device == "cuda":
        torch.cuda.synchronize()
