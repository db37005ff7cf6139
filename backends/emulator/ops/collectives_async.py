"""Collectives of a decode step that write into buffers which are there already, split heads or
multiply.

Numbers are those of the plain collectives: sums in float32, rounded once. Persistent buffers and
semaphores are taken and checked; where they are scratch, their contents stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends.emulator.api.parts import GlobalSemaphore, SubDeviceId, next_cores
from backends.emulator.api.types import (
    TILE,
    BufferType,
    DataType,
    Layout,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
    Topology,
    stored_bytes,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.numerics.products import Rounding
from backends.emulator.numerics.sums import mesh_sum, own_part, side_by_side
from backends.emulator.ops.matmul import multiplication
from backends.emulator.rules.collectives import (
    attributes,
    busiest_bytes,
    check_joined,
    check_links,
    check_packets,
    check_scattered,
    check_summed,
    line_of,
)
from backends.emulator.rules.matmul import check_pair, output_memory
from backends.work import product_flops


@op("experimental.all_reduce_async")
def all_reduce_async(
    input_tensor: Tensor,
    buffer_tensor: Tensor,
    cluster_axis: int,
    mesh_device: Any,
    multi_device_global_semaphore: GlobalSemaphore,
    *,
    dtype: DataType | None = None,
    memory_config: MemoryConfig | None = None,
    topology: Topology = Topology.Linear,
    num_links: int | None = None,
    subdevice_id: SubDeviceId | None = None,
) -> Tensor:
    """Sum over a line, whole on every chip, as `dtype`; the buffer has room for all parts.

    Every chip sends all it has to all others, and adds up what they sent.
    """
    x, name = input_tensor, "experimental.all_reduce_async"
    line, chips = line_of(name, x, cluster_axis)
    check_links(x, line, num_links)
    check_summed(x, buffer_tensor, memory_config or x.memory_config(), chips)
    dtype = dtype or x.dtype
    return launch(
        name,
        [x, buffer_tensor],
        [Out(x.dims, dtype, x.layout, memory_config or x.memory_config())],
        lambda data, _: mesh_sum(data, line, dtype),
        exact=True,
        link_bytes=busiest_bytes(x.buffer_bytes() * chips, chips, topology),
        attributes=attributes(line, chips, num_links, topology, None),
    )


@op("experimental.all_gather_async")
def all_gather_async(
    input_tensor: Tensor,
    dim: int,
    cluster_axis: int,
    mesh_device: Any,
    topology: Topology,
    multi_device_global_semaphore: Any,
    *,
    persistent_output_tensor: Tensor | None = None,
    num_links: int | None = None,
    memory_config: MemoryConfig | None = None,
    subdevice_id: SubDeviceId | None = None,
    barrier_semaphore: GlobalSemaphore | None = None,
) -> Tensor:
    """Every chip gets the parts of all chips of its line, in the tensor that waits for them."""
    return _gather("experimental.all_gather_async", **locals())


@op("experimental.all_gather_async_reversed")
def all_gather_async_reversed(
    input_tensor: Tensor,
    dim: int,
    cluster_axis: int,
    mesh_device: Any,
    topology: Topology,
    multi_device_global_semaphore: Any,
    *,
    persistent_output_tensor: Tensor | None = None,
    num_links: int | None = None,
    memory_config: MemoryConfig | None = None,
    subdevice_id: SubDeviceId | None = None,
    barrier_semaphore: GlobalSemaphore | None = None,
) -> Tensor:
    """The same with the last chip's part first."""
    width, (_, chips) = input_tensor.dims[-1], line_of("", input_tensor, cluster_axis)
    require(width % (TILE * chips) == 0, f"a width of {width} has no {chips} parts of whole tiles")
    return _gather("experimental.all_gather_async_reversed", backwards=True, **locals())


def _gather(
    name: str,
    *,
    input_tensor: Tensor,
    dim: int,
    cluster_axis: int,
    topology: Topology,
    persistent_output_tensor: Tensor | None,
    num_links: int | None,
    memory_config: MemoryConfig | None,
    backwards: bool = False,
    **_: Any,
) -> Tensor:
    x = input_tensor
    line, chips = line_of(name, x, cluster_axis)
    check_links(x, line, num_links)
    axis = line[0][0]
    dim %= len(x.dims)
    shape = (*x.dims[:dim], x.dims[dim] * chips, *x.dims[dim + 1 :])
    into = persistent_output_tensor
    require(into is None or into.dims == shape, f"the output tensor has to be {list(shape)}")

    def compute(data: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return side_by_side(data.flip(axis) if backwards else data, axis, chips, dim)

    return launch(
        name,
        [x] if into is None else [x, into],
        [Out(shape, x.dtype, x.layout, memory_config or x.memory_config())],
        compute,
        into=into,
        exact=dim < len(x.dims) - 1 or x.dims[-1] % TILE == 0,  # blocks stay as they are
        link_bytes=busiest_bytes(x.buffer_bytes() * chips, chips, topology),
        attributes=attributes(line, chips, num_links, topology, dim),
    )


@op("experimental.reduce_scatter_minimal_async")
def reduce_scatter_minimal_async(
    input_tensor: Tensor,
    persistent_output_buffers: Sequence[Tensor],
    dim: int,
    multi_device_global_semaphore: Sequence[GlobalSemaphore],
    *,
    num_links: int | None = None,
    memory_config: MemoryConfig | None = None,
    topology: Topology = Topology.Ring,
    cluster_axis: int | None = None,
) -> Tensor:
    """Sum over a line into the second buffer, every chip its slice; the first holds what comes."""
    x, name = input_tensor, "experimental.reduce_scatter_minimal_async"
    line, chips = line_of(name, x, cluster_axis)
    check_links(x, line, num_links)
    room, into = persistent_output_buffers
    dim %= len(x.dims)
    shape = (*x.dims[:dim], x.dims[dim] // chips, *x.dims[dim + 1 :])
    require(x.dims[dim] % (TILE * chips) == 0, f"{x.shape} does not part into whole tiles")
    require(room.dims == x.dims, f"the intermediate buffer has to be {list(x.dims)}")
    require(into.dims == shape, f"the output buffer has to be {list(shape)}")
    require(len(multi_device_global_semaphore) == 3, "three semaphores are needed")
    return launch(
        name,
        [x, room, into],
        [Out(shape, x.dtype, x.layout, into.memory_config())],
        lambda data, *_, dtype=x.dtype: mesh_sum(data, line, dtype, dim=dim),
        into=into,
        exact=True,
        dram_bytes=2 * x.buffer_bytes() + into.buffer_bytes(),
        link_bytes=busiest_bytes(x.buffer_bytes(), chips, topology),
        attributes=attributes(line, chips, num_links, topology, dim),
    )


@op("experimental.llama_reduce_scatter")
def llama_reduce_scatter(
    input_tensor: Tensor,
    intermediate_packet_buffer: Tensor,
    dim: int,
    cross_device_semaphore: GlobalSemaphore,
    subdevice_id: SubDeviceId,
    cluster_axis: int,
    mesh_device: Any,
    *,
    num_links: int | None = None,
    memory_config: MemoryConfig | None = None,
    topology: Topology = Topology.Linear,
) -> Tensor:
    """Sum over a row of chips of one tile row of activations; every chip keeps its columns."""
    x, name = input_tensor, "experimental.llama_reduce_scatter"
    line, chips = line_of(name, x, cluster_axis)
    check_links(x, line, num_links)
    check_scattered(x, intermediate_packet_buffer, dim, cluster_axis, chips, num_links)
    width = x.dims[-1]
    check_packets(x.memory_config().shard_spec.shape[1] // TILE, x.dtype)
    require(
        width % x.memory_config().shard_spec.shape[1] == 0 and width % (TILE * chips) == 0,
        f"a width of {width} leaves shards or parts that are not whole",
    )
    return launch(
        name,
        [x, intermediate_packet_buffer],
        [Out((*x.dims[:-1], width // chips), x.dtype, x.layout, memory_config)],
        lambda data, _, dtype=x.dtype: mesh_sum(data, line, dtype, dim=3),
        exact=True,
        link_bytes=busiest_bytes(x.buffer_bytes(), chips, topology),
        attributes=attributes(line, chips, num_links, topology, dim),
    )


@op("experimental.llama_rs_create_heads")
def llama_rs_create_heads(
    input_tensor: Tensor,
    intermediate_packet_buffer: Tensor,
    dim: int,
    cross_device_semaphore: GlobalSemaphore,
    subdevice_id: SubDeviceId,
    cluster_axis: int,
    mesh_device: Any,
    topology: Topology,
    *,
    num_links: int | None = None,
    num_heads: int,
    num_kv_heads: int,
    memory_config: MemoryConfig | None = None,
    qkv_memory_config: MemoryConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum rows [1, 1, U, (H + 2K) W] over a row of chips, each keeping its users, split by heads.

    Gives query, key and value [1, B, H, W], rows as the input's layout has them, a core per user;
    of keys and values the first K heads count, the rest is padding.
    """
    x, name = input_tensor, "experimental.llama_rs_create_heads"
    line, chips = line_of(name, x, cluster_axis)
    check_links(x, line, num_links)
    check_scattered(x, intermediate_packet_buffer, dim, cluster_axis, chips, num_links)
    require(x.layout is Layout.ROW_MAJOR, "heads that fill no tile need a ROW_MAJOR input")
    require(qkv_memory_config is not None, "heads need cores: bad optional access")
    users, head = x.dims[2] // chips, x.dims[3] // (num_heads + 2 * num_kv_heads)
    counts, dtype = (num_heads, num_kv_heads, num_kv_heads), x.dtype

    def compute(data: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = own_part(mesh_sum(data, line, dtype), line, 2)  # [r, c, 1, 1, B, HW]
        heads = total.squeeze(3).unflatten(-1, (-1, head))
        parts = heads.split(counts, dim=-2)
        missing = num_heads - num_kv_heads
        return parts[0], *(torch.nn.functional.pad(p, (0, 0, 0, missing)) for p in parts[1:])

    box = qkv_memory_config.shard_spec.grid.bounding_box()  # type: ignore[union-attr]

    def memory(part: int) -> MemoryConfig:
        """A core for each user, one part after the other."""
        shard = ShardSpec(next_cores(box, part * users, users), (num_heads, head))
        return MemoryConfig(TensorMemoryLayout.HEIGHT_SHARDED, BufferType.L1, shard)

    outs = [Out((1, users, num_heads, head), x.dtype, x.layout, memory(part)) for part in range(3)]
    return launch(
        name,
        [x, intermediate_packet_buffer],
        outs,
        compute,
        exact=True,
        link_bytes=busiest_bytes(x.buffer_bytes(), chips, topology),
        attributes={
            **attributes(line, chips, num_links, topology, dim),
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
        },
    )


@op("experimental.all_gather_concat")
def all_gather_concat(
    input_tensor: Tensor,
    buffer_tensor: Tensor,
    dim: int,
    *,
    cluster_axis: int,
    mesh_device: Any,
    multi_device_global_semaphore: GlobalSemaphore,
    num_heads: int,
    memory_config: MemoryConfig,
    num_links: int | None = None,
    topology: Topology = Topology.Linear,
    subdevice_id: SubDeviceId | None = None,
) -> Tensor:
    """Heads [1, B, H, W] of all users of a row of chips side by side, [1, 1, 32, H W] in tiles."""
    x, name = input_tensor, "experimental.all_gather_concat"
    line, chips = line_of(name, x, cluster_axis)
    check_links(x, line, num_links)
    require(dim == 1, f"dim must be 1, got {dim}")
    check_joined(x, memory_config, num_heads, chips)
    ((axis, _),) = line
    shape = (1, 1, x.dims[1] * chips, num_heads * x.dims[3])

    def compute(data: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        every = side_by_side(data[..., :num_heads, :], axis, chips, 1)
        return every.flatten(-2).unsqueeze(2)

    return launch(
        name,
        [x, buffer_tensor],
        [Out(shape, x.dtype, Layout.TILE, memory_config)],
        compute,
        exact=True,
        link_bytes=busiest_bytes(x.buffer_bytes() * chips, chips, topology),
        attributes={**attributes(line, chips, num_links, topology, dim), "num_heads": num_heads},
    )


@op("experimental.llama_rs_matmul")
def llama_rs_matmul(
    input_tensor: Tensor,
    weight_tensor: Tensor,
    intermediate_packet_buffer: Tensor,
    dim: int,
    cross_device_semaphore: GlobalSemaphore,
    cluster_axis: int,
    mesh_device: Any,
    num_links: int | None,
    subdevice_id: SubDeviceId,
    *,
    second_weight_tensor: Tensor,
    topology: Topology = Topology.Linear,
    memory_config_rs: MemoryConfig | None = None,
    memory_config_mm: MemoryConfig | None = None,
    compute_kernel_config: Any = None,
    global_cb: Any,
    dtype: DataType | None = None,
    program_config: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two products of one tile row on a ring, and the first one's sum over a row of chips.

    Weights come by a global buffer; one weight beside a scatter of another tensor is not emulated.

    Gives both products and this chip's columns of the sum: `linear` twice, and
    `llama_reduce_scatter` of the first while the second is made.
    """
    a, b, second = input_tensor, weight_tensor, second_weight_tensor
    name, packets = "experimental.llama_rs_matmul", intermediate_packet_buffer
    line, chips = line_of(name, a, cluster_axis)
    check_links(a, line, num_links)
    check_scattered(a, packets, dim, cluster_axis, chips, num_links)
    shape, inner = check_pair(a, b, second, chips)
    memory = output_memory(a, b, shape, inner, program_config, memory_config_mm)
    check_packets(memory.shard_spec.shape[1] // TILE, dtype := dtype or a.dtype)
    rounding = Rounding(dtype, compute_kernel_config.fp32_dest_acc_en)
    multiply = [multiplication(a, w, compute_kernel_config.math_fidelity) for w in (b, second)]

    def compute(
        x: torch.Tensor, w: torch.Tensor, _: torch.Tensor, other: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        first = multiply[0](x, w, rounding)
        return first, multiply[1](x, other, rounding), mesh_sum(first, line, dtype, dim=3)

    product, own = Out(shape, dtype, Layout.TILE, memory), (*shape[:-1], shape[-1] // chips)
    return launch(
        name,
        [a, b, packets, second],
        [product, product, Out(own, dtype, Layout.TILE, memory_config_rs)],
        compute,
        exact=True,
        flops=2 * product_flops(shape[-2], inner, shape[-1]),
        dram_bytes=0,  # the prefetcher read them
        link_bytes=busiest_bytes(stored_bytes(shape, dtype, Layout.TILE), chips, topology),
        attributes={
            **attributes(line, chips, num_links, topology, dim),
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )
