"""Reading weights ahead of time: nothing is computed, but the bytes are read here and not later."""

from __future__ import annotations

from collections.abc import Sequence

from backends.emulator.api.parts import GlobalCircularBuffer
from backends.emulator.api.types import TILE, DataType, Layout, TensorMemoryLayout
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op, require


@op("dram_prefetcher")
def dram_prefetcher(
    tensors: Sequence[Tensor],
    num_layers: int,
    global_cb: GlobalCircularBuffer | None = None,
    *,
    enable_performance_mode: bool = False,
) -> Tensor:
    """Stream the first layer's weights and, by the addresses in the last tensor, all others'."""
    *weights, addresses = tensors
    require(global_cb is not None, "a global circular buffer is needed")
    require(weights, "at least one weight and the addresses are needed")
    for weight in weights:
        layout = weight.memory_config().memory_layout
        require(
            weight.in_dram() and layout is TensorMemoryLayout.WIDTH_SHARDED,
            f"weights must be width-sharded in DRAM, got {layout.name}",
        )
    wanted = num_layers * len(weights)
    require(
        addresses.dims[-1] == wanted and addresses.dtype is DataType.UINT32,
        f"{num_layers} layers of {len(weights)} weights have {wanted} addresses, got "
        f"{addresses.shape} of {addresses.dtype}",
    )
    return launch(
        "dram_prefetcher",
        list(tensors),
        [Out((TILE, TILE), DataType.BFLOAT8_B, Layout.TILE)],
        lambda *data: data[-1].new_zeros((1, 1, TILE, TILE)).float(),
        dram_bytes=num_layers * sum(weight.spec().sharded_bytes for weight in weights),
        attributes={"num_layers": num_layers},
    )
