"""matmul and linear, with everything the matrix unit does to the numbers.

Fidelity limits the bits of both operands (see kernels.py); without fp32_dest_acc_en the result
passes through a bfloat16 accumulator. Partial sums between blocks of K are not rounded here, so
narrow accumulation is a little better than on silicon.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from backends.emulator.formats import keep_significant_bits
from backends.emulator.kernels import PASS_BITS_IN0, PASS_BITS_IN1, operands, product
from backends.emulator.launch import Out, fatal, launch, memory_or_default, op, require
from backends.emulator.tensor import Tensor
from backends.emulator.types import (
    TILE,
    DataType,
    MathFidelity,
    MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
    WormholeComputeKernelConfig,
    num_cores_to_corerangeset,
)

_ACTIVATIONS = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}
_DEFAULT_KERNEL = WormholeComputeKernelConfig(MathFidelity.HiFi2)


@op("linear")
def linear(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor,
    *,
    bias: Tensor | None = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    program_config: Any = None,
    activation: str | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    core_grid: Any = None,
) -> Tensor:
    return _matmul("linear", **locals())


@op("matmul")
def matmul(
    input_tensor_a: Tensor,
    input_tensor_b: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    memory_config: MemoryConfig | None = None,
    dtype: DataType | None = None,
    program_config: Any = None,
    activation: str | None = None,
    compute_kernel_config: WormholeComputeKernelConfig | None = None,
    core_grid: Any = None,
) -> Tensor:
    return _matmul("matmul", bias=None, **locals())


def _matmul(
    name: str,
    *,
    input_tensor_a: Tensor,
    input_tensor_b: Tensor,
    bias: Tensor | None,
    transpose_a: bool,
    transpose_b: bool,
    memory_config: MemoryConfig | None,
    dtype: DataType | None,
    program_config: Any,
    activation: str | None,
    compute_kernel_config: WormholeComputeKernelConfig | None,
    core_grid: Any,
) -> Tensor:
    a, b = input_tensor_a, input_tensor_b
    if transpose_a or transpose_b:
        fatal("transpose_a and transpose_b are not emulated: transpose the tensor first")
    rows, k = a.shape[-2:]
    height, n = b.shape[-2:]
    require(
        k == height,
        "The width of the first tensor must be equal to the height of the second tensor. "
        f"Mismatch: width={k} height={height}",
    )
    dtype = dtype or a.dtype
    memory = memory_or_default(memory_config, a)
    if isinstance(program_config, MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig):
        memory = _dram_sharded_output(a, b, n, program_config, memory)
    kernel = compute_kernel_config or _DEFAULT_KERNEL
    compute = _compute(b, kernel, dtype, activation, bias is not None)
    shape = (*a.shape[:-2], rows, n)
    batch = 1
    for size in a.shape[:-2]:
        batch *= size
    return launch(
        name,
        [a, b] if bias is None else [a, b, bias],
        [Out(shape, dtype, a.layout, memory)],
        compute,
        flops=2 * batch * rows * k * n,
        attributes={
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
            "activation": activation,
        },
    )


def _dram_sharded_output(
    a: Tensor,
    b: Tensor,
    n: int,
    config: MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig,
    memory: MemoryConfig,
) -> MemoryConfig:
    """Check the operands' placement; the output has one shard of per_core_N tiles per core."""
    name = "MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig"
    require(a.is_sharded(), f"{name}: Input A must be sharded, got: INTERLEAVED")
    layout = b.memory_config().memory_layout
    require(
        layout is TensorMemoryLayout.WIDTH_SHARDED,
        f"{name}: Input B memory layout must be WIDTH_SHARDED, got: {layout.name}",
    )
    shard = a.memory_config().shard_spec
    width = shard.shape[1] // TILE
    require(
        width % config.in0_block_w == 0,
        f"{name}: in0_block_w ({config.in0_block_w}) must divide the {width} tiles of a shard",
    )
    require(
        memory.memory_layout is TensorMemoryLayout.WIDTH_SHARDED,
        f"{name}: Output memory layout must be WIDTH_SHARDED, got: {memory.memory_layout.name}",
    )
    cores = -(-n // (TILE * config.per_core_N))
    grid = num_cores_to_corerangeset(
        cores, a.device().compute_with_storage_grid_size(), row_wise=True
    )
    spec = ShardSpec(grid, (TILE * config.per_core_M, TILE * config.per_core_N))
    return MemoryConfig(memory.memory_layout, memory.buffer_type, spec)


def _compute(
    b: Tensor,
    kernel: WormholeComputeKernelConfig,
    dtype: DataType,
    activation: str | None,
    has_bias: bool,
) -> Any:
    """The arithmetic on mesh-batched data."""
    fidelity, wide = kernel.math_fidelity, kernel.fp32_dest_acc_en
    narrow = (dtype is DataType.BFLOAT16 or not wide) and not has_bias and not activation
    weight_bits = {DataType.BFLOAT8_B: 7, DataType.BFLOAT4_B: 3}.get(b.dtype, 8)
    act = _ACTIVATIONS[activation] if activation else None

    def compute(x: torch.Tensor, w: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        forms = _forms(b, w)
        if fidelity is MathFidelity.HiFi3:
            # HiFi2's passes, and the low bits of in0 against the high bits of in1
            high = keep_significant_bits(x, PASS_BITS_IN0)
            out = fold_product(high, w, forms, "all", False).float()
            part = keep_significant_bits(w, PASS_BITS_IN1)
            out = out + fold_product(x - high, part, forms, "high", False)
        else:
            x, seen = operands(x, w, fidelity, weight_bits)
            out = fold_product(x, seen, forms, fidelity.name, narrow)
        if not wide and out.dtype is not torch.bfloat16:
            out = out.to(torch.bfloat16)
        if bias:
            out = out + bias[0]
        return act(out.float()) if act else out

    return compute


def _forms(tensor: Tensor, data: torch.Tensor) -> dict[Any, Any]:
    """Copies kept for a constant operand; dropped when its values are replaced."""
    if tensor.derived is None or tensor.derived.get("source") is not data:
        tensor.derived = {"source": data}
    return tensor.derived


def fold_product(
    x: torch.Tensor, w: torch.Tensor, forms: dict[Any, Any], key: str, narrow: bool
) -> torch.Tensor:
    """x [r, c, a, b, M, K] times w [r, c, 1, 1, K, N] as one product of as few groups as possible.

    A mesh axis that only x has adds rows, one that only w has adds columns, one both have makes
    groups; replicated axes cost nothing.
    """
    batch = [x.shape[i] > 1 and w.shape[i] > 1 for i in (0, 1)]
    rows, cols = max(x.shape[0], w.shape[0]), max(x.shape[1], w.shape[1])
    w_form = forms.get(key)
    if w_form is None:
        order = _grouped_first(batch)
        flat = w.reshape(*w.shape[:2], w.shape[-2], w.shape[-1]).mT  # [r, c, N, K]
        flat = flat.permute(*order, 2, 3)
        groups = (w.shape[0] if batch[0] else 1) * (w.shape[1] if batch[1] else 1)
        w_form = forms[key] = {"data": flat.reshape(groups, -1, w.shape[-2]), "n": w.shape[-1]}
    weight, n = w_form["data"], w_form["n"]
    order = _grouped_first(batch)
    moved = x.permute(*order, *range(2, x.dim()))
    groups = weight.shape[0]
    k = x.shape[-1]
    out = product(moved.reshape(groups, -1, k), weight, w_form, narrow)
    # back to [r, c, ..., M, N]: rows held x's own axes, columns held w's
    sizes = [x.shape[i] if not batch[i] and x.shape[i] > 1 else 1 for i in order]
    w_sizes = [w.shape[i] if not batch[i] and w.shape[i] > 1 else 1 for i in order]
    group_sizes = [x.shape[i] if batch[i] else 1 for i in order]
    inner = x.shape[2:-1]
    out = out.reshape(*group_sizes, *sizes, *inner, *w_sizes, n)
    depth = len(inner)
    # dims: 0,1 groups; 2,3 x rows; 4.. inner; then two w dims; n
    out = out.permute(
        0, 2, 4 + depth, 1, 3, 5 + depth, *range(4, 4 + depth), 6 + depth
    ).reshape(*[max(g, s, ws) for g, s, ws in zip(group_sizes, sizes, w_sizes, strict=True)],
              *inner, n)  # fmt: skip
    return out if order == (0, 1) else out.transpose(0, 1)[:rows, :cols]


def _grouped_first(batch: list[bool]) -> tuple[int, int]:
    """Mesh axes with the grouped one in front."""
    return (1, 0) if batch[1] and not batch[0] else (0, 1)
