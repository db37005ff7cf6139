"""The norm of a stream that chips share, with the sum before it and the exchange of statistics."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.api.parts import GlobalSemaphore, SubDeviceId
from backends.emulator.api.types import DataType, MemoryConfig, Topology
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op
from backends.emulator.ops.norm import Weight
from backends.emulator.rules.collectives import attributes, busiest_bytes, check_links, line_of
from backends.emulator.rules.norm import check_exchange, check_input, check_shards, check_weight


@op("fused_rms_minimal")
def fused_rms_minimal(
    input_tensor: Tensor,
    program_config: Any,
    cluster_axis: int,
    mesh_device: Any,
    global_semaphore: GlobalSemaphore,
    *,
    num_links: int | None = None,
    topology: Topology = Topology.Linear,
    subdevice_id: SubDeviceId | None = None,
    dtype: DataType | None = None,
    compute_kernel_config: Any = None,
    memory_config: MemoryConfig | None = None,
    residual_input_tensor: Tensor | None = None,
    epsilon: float = 1e-12,
    weight: Tensor | None = None,
    stats: Tensor | None = None,
) -> Tensor:
    """Rows over their root mean square, taken over all chips of a line, times the weight.

    A residual is added first, and holds the sum afterwards. Statistics are exchanged as `stats` is.
    """
    x, residual, name = input_tensor, residual_input_tensor, "fused_rms_minimal"
    check_input(x)
    check_weight(x, weight)
    check_shards(x, program_config)
    check_exchange(name, stats, compute_kernel_config)
    assert stats is not None
    line, chips = line_of(name, x, cluster_axis)
    check_links(x, line, num_links)
    by, axis, share = Weight(x, weight), line[0][0], 1 / (x.dims[-1] * chips)
    adds, exchanged = residual is not None, stats.dtype.carrier  # a trace keeps no operand

    def compute(data: torch.Tensor, _: torch.Tensor, *others: torch.Tensor) -> Any:
        rest = list(others)
        if adds:
            old = rest.pop(0)
            data = (data.float() + old.float()).to(old.dtype)
        wide = data.float()
        own = torch.linalg.vecdot(wide, wide).unsqueeze(-1).to(exchanged).float()
        total = own * chips if own.shape[axis] == 1 else own.sum(axis, keepdim=True)
        normed = by.scale(wide * (total * share + epsilon).rsqrt(), tuple(rest))
        return (normed, data) if adds else normed

    added = [] if residual is None else [residual]
    return launch(
        name,
        [x, stats, *added, *by.operands],
        [Out(x.dims, dtype or x.dtype, x.layout, memory_config or x.memory_config())],
        compute,
        updates=residual,
        link_bytes=busiest_bytes(stats.buffer_bytes(), chips, topology),
        attributes={
            **attributes(line, chips, num_links, topology, None),
            "epsilon": epsilon,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )
