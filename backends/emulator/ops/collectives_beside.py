"""A product and the scatter of its sum in one op: bit for bit `matmul` and `reduce_scatter`.

While one slice is scattered the next is made. Weights may be dealt to the DRAM banks; a gather
before a product is not emulated, since TT-NN's kernel reads such weights from the first row on
while activations arrive with this chip's own part first.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from backends.emulator.api.configs import MatmulMultiCoreReuseMultiCastProgramConfig, grid_xy
from backends.emulator.api.parts import GlobalSemaphore
from backends.emulator.api.types import (
    TILE,
    CoreCoord,
    DataType,
    Layout,
    MemoryConfig,
    Topology,
    stored_bytes,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.numerics.products import Rounding
from backends.emulator.numerics.sums import mesh_sum
from backends.emulator.ops.matmul import multiplication
from backends.emulator.rules.collectives import attributes, busiest_bytes, check_links, line_of
from backends.emulator.rules.matmul import check_operands, output_memory, output_shape
from backends.work import product_flops


@op("experimental.matmul_reduce_scatter_async")
def matmul_reduce_scatter_async(
    input_tensor: Tensor,
    weight_tensor: Tensor,
    persistent_intermediate_buffer: Tensor,
    persistent_output_buffer: Tensor,
    dim: int,
    multi_device_global_semaphore: list[GlobalSemaphore],
    reduce_scatter_core_grid_offset: CoreCoord | tuple[int, int],
    *,
    num_links: int = 1,
    memory_config_rs: MemoryConfig | None = None,
    topology: Topology = Topology.Ring,
    memory_config_mm: MemoryConfig | None = None,
    dtype: DataType | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
) -> tuple[Tensor, Tensor]:
    """Products x W, and of their sum over all chips this chip's columns, in the output buffer."""
    a, b, name = input_tensor, weight_tensor, "experimental.matmul_reduce_scatter_async"
    room, into = persistent_intermediate_buffer, persistent_output_buffer
    line, chips = line_of(name, a, None)
    check_links(a, line, num_links)
    require(dim == 3, "MatmulReduceScatterAsync requires dim=3 for the ReduceScatter operations.")
    check_operands(a, b, None)
    shape, inner = output_shape(a, b, transpose_a=False, transpose_b=False)
    memory = output_memory(a, b, shape, inner, program_config, memory_config_mm)
    _check_cores(program_config, reduce_scatter_core_grid_offset)
    require(shape[-1] % (TILE * chips) == 0, f"a width of {shape[-1]} leaves parts not whole")
    own = (*shape[:-1], shape[-1] // chips)
    require(room.dims == shape, f"the intermediate buffer has to be {list(shape)}")
    require(into.dims == own, f"the output buffer has to be {list(own)}")
    require(len(multi_device_global_semaphore) == 3, "three semaphores are needed")
    require(topology is Topology.Ring, "on a line TT-NN builds the program of a ring")
    dtype = dtype or a.dtype
    require(room.dtype is dtype and into.dtype is dtype, f"buffers have to be {dtype.name}")
    multiply = multiplication(a, b, compute_kernel_config.math_fidelity)
    rounding = Rounding(dtype, compute_kernel_config.fp32_dest_acc_en)

    def compute(x: torch.Tensor, w: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
        product = multiply(x, w, rounding)
        return product, mesh_sum(product, line, dtype, dim=3)

    whole = Tensor(None, *Out(shape, dtype, Layout.TILE, memory), a.device())
    a.device().allocate(whole)  # type: ignore[union-attr]
    return launch(
        name,
        [a, b, room],
        [],
        compute,
        into=(whole, into),
        exact=True,
        flops=product_flops(math.prod(shape[:-1]), inner, shape[-1]),
        link_bytes=busiest_bytes(stored_bytes(shape, dtype, Layout.TILE), chips, topology),
        attributes={
            **attributes(line, chips, num_links, topology, dim),
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


def _check_cores(config: Any, offset: CoreCoord | tuple[int, int]) -> None:
    """The product's cores are none of the scatter's, which lie from `offset` on."""
    require(
        isinstance(config, MatmulMultiCoreReuseMultiCastProgramConfig),
        "Unsupported MatmulProgramConfig type for MatmulReduceScatterAsync. Needs to be 2D "
        "Multicast.",
    )
    columns, rows = grid_xy(config.compute_with_storage_grid_size)
    x, y = (offset.x, offset.y) if isinstance(offset, CoreCoord) else offset
    require(
        y >= rows or x >= columns,
        "Invalid circular buffer index: Cannot add circular buffer at index 0, another circular "
        "buffer already exists",
    )
