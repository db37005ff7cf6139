"""The norm of a row by its mean and variance, in float32; norm.py has the root-mean-square one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from backends.emulator.api.types import MemoryConfig
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.rules.norm import check_input, check_weight, output_memory


@op("layer_norm")
def layer_norm(
    input_tensor: Tensor,
    *,
    epsilon: float = 1e-12,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual_input_tensor: Tensor | None = None,
    memory_config: MemoryConfig | None = None,
    program_config: Any = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    """Rows less their mean, by their standard deviation, times the weight, plus the bias."""
    x = input_tensor
    require(residual_input_tensor is None, "a residual is not emulated")
    require(not x.is_sharded() and program_config is None, "layer_norm of shards is not emulated")
    require(bias is None or weight is not None, "a bias without a weight is not emulated")
    check_input(x)
    check_weight(x, weight)
    check_weight(x, bias)
    width = x.dims[-1]

    def compute(data: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(data.float(), (width,), eps=epsilon)
        for index, row in enumerate(rows):
            row = row[0, 0].float().flatten()[:width]  # all chips norm alike
            normed = normed.mul_(row) if index == 0 else normed.add_(row)
        return normed

    return launch(
        "layer_norm",
        [x, *(row for row in (weight, bias) if row is not None)],
        [Out(x.dims, x.dtype, x.layout, output_memory(x, memory_config))],
        compute,
        attributes={"epsilon": epsilon, "compute_kernel_config": compute_kernel_config},
    )
