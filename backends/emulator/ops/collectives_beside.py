"""A product with the scatter of its sum, or with the gather before it, in one op.

Bit for bit `matmul` and `reduce_scatter`, or `all_gather` and `matmul`. While one slice is
scattered the next is made; what other chips hold is multiplied as it comes.
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
from backends.emulator.numerics.sums import mesh_sum, side_by_side
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
    _check_cores("MatmulReduceScatterAsync", program_config, reduce_scatter_core_grid_offset)
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


@op("experimental.all_gather_matmul_async")
def all_gather_matmul_async(
    input_tensor: Tensor,
    weight_tensor: Tensor,
    *,
    persistent_output_buffer: Tensor,
    dim: int,
    multi_device_global_semaphore: list[GlobalSemaphore],
    all_gather_core_grid_offset: CoreCoord | tuple[int, int],
    num_links: int = 1,
    memory_config_ag: MemoryConfig | None = None,
    topology: Topology = Topology.Ring,
    memory_config_mm: MemoryConfig | None = None,
    dtype: DataType | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
    num_workers_per_link: int = 1,
) -> tuple[Tensor, Tensor]:
    """All chips' columns of the input, in the output buffer, and their product with the weight.

    The buffer's columns are multiplied in the order in which they come, this chip's own first.
    """
    a, b, into = input_tensor, weight_tensor, persistent_output_buffer
    name = "experimental.all_gather_matmul_async"
    line, chips = line_of(name, a, None)
    check_links(a, line, num_links)
    _check_gather(a, into, dim, chips, topology, multi_device_global_semaphore)
    check_operands(into, b, None)
    shape, inner = output_shape(into, b, transpose_a=False, transpose_b=False)
    memory = output_memory(into, b, shape, inner, program_config, memory_config_mm)
    _check_cores("AllGatherMatmulAsync", program_config, all_gather_core_grid_offset)
    _check_room(into, all_gather_core_grid_offset, 2 * num_links * (num_workers_per_link + 1))
    _check_order(a, b, program_config)
    dtype = dtype or a.dtype
    multiply = multiplication(into, b, compute_kernel_config.math_fidelity)
    rounding = Rounding(dtype, compute_kernel_config.fp32_dest_acc_en)
    ((axis, _),) = line

    def compute(x: torch.Tensor, w: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gathered = side_by_side(x, axis, chips, 3)
        return gathered, multiply(gathered, w, rounding)

    product = Tensor(None, *Out(shape, dtype, Layout.TILE, memory), a.device())
    a.device().allocate(product)  # type: ignore[union-attr]
    return launch(
        name,
        [a, b, into],
        [],
        compute,
        into=(into, product),
        exact=True,
        flops=product_flops(math.prod(shape[:-1]), inner, shape[-1]),
        link_bytes=a.buffer_bytes() * (chips // 2),  # the farthest part goes one way, whole
        attributes={
            **attributes(line, chips, num_links, topology, dim),
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


def _check_gather(
    x: Tensor, into: Tensor, dim: int, chips: int, topology: Topology, flags: list[GlobalSemaphore]
) -> None:
    """One block of rows, whose columns a ring gathers into a buffer that waits for them."""
    require(
        topology is Topology.Ring and chips > 2,
        "linear is not support when using fused for all-gather",
    )
    require(dim == 3, "AllGatherMatmulAsync requires dim=3 for the AllGather operations.")
    require(
        x.dims[:-2] == (1, 1), "AllGatherMatmulAsync requires input tensor to have batch size of 1."
    )
    require(len(flags) == 2, "Default implementation requires 2 semaphores")
    whole = (*x.dims[:-1], x.dims[-1] * chips)
    require(into.dims == whole and into.dtype is x.dtype, f"the buffer has to be {list(whole)}")


def _check_room(x: Tensor, offset: CoreCoord | tuple[int, int], cores: int) -> None:
    """So many cores of a gather lie in the grid's rows from `offset` on.

    Of each link and direction its workers, and one that sends for them.
    """
    grid = x.device().compute_with_storage_grid_size()  # type: ignore[union-attr]
    y = offset.y if isinstance(offset, CoreCoord) else offset[1]
    require(
        cores <= grid.x * (grid.y - y),
        f"Core grid offset 0-{y} pushed some of the {cores} selected worker cores off the worker "
        "grid; kernels cannot be placed there.",
    )


def _check_order(a: Tensor, b: Tensor, config: Any) -> None:
    """What TT-NN takes, and would multiply wrongly or wait for in vain.

    Its kernels count the parts that come once, for one block of the product on each core; they
    read a weight in the order of the parts only where its tiles are spread over all banks.
    """
    require(not b.is_sharded(), "weights dealt to DRAM banks are not read as the parts come")
    rows, columns = config.per_core_M, config.per_core_N
    require(
        (config.out_block_h or rows) == rows and (config.out_block_w or columns) == columns,
        "a core waits for every part once, and can make no second block",
    )
    require(
        a.dims[-1] % (TILE * config.in0_block_w) == 0,
        f"a part of {a.dims[-1]} columns is no whole blocks of {config.in0_block_w} tiles",
    )


def _check_cores(name: str, config: Any, offset: CoreCoord | tuple[int, int]) -> None:
    """The product's cores are none of the collective's, which lie from `offset` on."""
    require(
        isinstance(config, MatmulMultiCoreReuseMultiCastProgramConfig),
        f"Unsupported MatmulProgramConfig type for {name}. Needs to be 2D Multicast.",
    )
    columns, rows = grid_xy(config.compute_with_storage_grid_size)
    x, y = (offset.x, offset.y) if isinstance(offset, CoreCoord) else offset
    require(
        y >= rows or x >= columns,
        "Invalid circular buffer index: Cannot add circular buffer at index 0, another circular "
        "buffer already exists",
    )
