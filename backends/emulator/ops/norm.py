"""Root-mean-square norms in float32: whole rows, and rows whose columns other chips share."""

from __future__ import annotations

from typing import Any

import torch

from backends.emulator.api.types import TILE, DataType, MemoryConfig
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.loops.call import LANES, call, can_run
from backends.emulator.numerics.at_once import Gathered
from backends.emulator.numerics.formats import MANTISSA_BITS, ROUNDED, finish
from backends.emulator.rules.norm import (
    check_input,
    check_shards,
    check_stats,
    check_weight,
    output_memory,
    stats_memory,
)


class Weight:
    """The scale of every column, or none; worked out again only for another tensor."""

    def __init__(self, x: Tensor, weight: Tensor | None) -> None:
        self.operands = [] if weight is None else [weight]
        self.width, self.rank = x.dims[-1], len(x.dims)
        self.source: torch.Tensor | None = None
        self.row = torch.empty(0)

    def shared(self, weights: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        """The one row that scales all chips' columns; None: there is none."""
        if not weights:
            return None
        self._read(weights[0])
        return self.row.view(-1) if self.row.numel() == self.width else self.row

    def scale(self, out: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """`out` times the weight, in place; the weight is [..., D / 32, 32] or [..., rows, D]."""
        if not weights:
            return out
        self._read(weights[0])
        return out.mul_(self.row)

    def _read(self, data: torch.Tensor) -> None:
        if data is not self.source:
            row = data.float().flatten(2)[..., : self.width]
            self.row = row.view(*row.shape[:2], *(1,) * (self.rank - 1), self.width)
            self.source = data


def _is_plain(x: Tensor, *others: DataType) -> bool:
    """Whether the C loops take such rows."""
    return {x.dtype, *others} == {DataType.BFLOAT16} and x.dims[-1] % LANES == 0


def _fits(row: torch.Tensor | None, data: torch.Tensor) -> bool:
    """Whether there is one weight for all chips, or one for each that has rows."""
    return row is None or row.dim() == 1 or row.shape[:2] == data.shape[:2]


@op("rms_norm")
def rms_norm(
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
    """Rows divided by their root mean square, times the weight."""
    x = input_tensor
    require(bias is None and residual_input_tensor is None, "bias and residual are not emulated")
    check_input(x)
    check_weight(x, weight)
    check_shards(x, program_config)
    by = Weight(x, weight)
    share = 1 / x.dims[-1]
    is_plain = _is_plain(x)

    def compute(data: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        row = by.shared(weights)
        if is_plain and _fits(row, data) and can_run(data):
            return _normalised(data, row, None, share, epsilon)
        wide = data.to(torch.float32, copy=True)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = length.square_().mul_(share).add_(epsilon).rsqrt_()
        return by.scale(wide.mul_(inverse), weights)

    return launch(
        "rms_norm",
        [x, *by.operands],
        [Out(x.dims, x.dtype, x.layout, output_memory(x, memory_config))],
        compute,
        attributes={
            "epsilon": epsilon,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
        },
    )


@op("rms_norm_pre_all_gather")
def rms_norm_pre_all_gather(
    input_tensor: Tensor,
    *,
    dtype: DataType = DataType.BFLOAT16,
    residual_input_tensor: Tensor | None = None,
    compute_kernel_config: Any = None,
    program_config: Any = None,
    memory_config: MemoryConfig | None = None,
    use_2d_core_grid: bool | None = None,
) -> Tensor:
    """Sums of squares, one tile wide: the value is in the tile's first column."""
    x = input_tensor
    require(residual_input_tensor is None, "a residual is not emulated")
    check_stats(x, compute_kernel_config, program_config)

    is_plain = _is_plain(x, dtype)

    def compute(data: torch.Tensor) -> torch.Tensor:
        if is_plain and can_run(data):
            return _sum_squares(data)
        wide = data.float()
        sums = torch.linalg.vecdot(wide, wide).unsqueeze(-1)
        return torch.nn.functional.pad(sums, (0, TILE - 1))

    return launch(
        "rms_norm_pre_all_gather",
        [x],
        [Out((*x.dims[:-1], TILE), dtype, x.layout, stats_memory(x, memory_config))],
        compute,
        attributes={
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
            **_core_grid(x, use_2d_core_grid),
        },
    )


@op("rms_norm_post_all_gather")
def rms_norm_post_all_gather(
    input_tensor: Tensor,
    stats: Tensor,
    *,
    epsilon: float = 1e-12,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: Any = None,
    program_config: Any = None,
    dtype: DataType | None = None,
    use_2d_core_grid: bool | None = None,
) -> Tensor:
    """The norm by every chip's sums of squares, side by side in `stats`."""
    x = input_tensor
    require(bias is None, "a bias is not emulated")
    check_input(x)
    check_weight(x, weight)
    check_shards(x, program_config, stats)
    by = Weight(x, weight)
    share = TILE / (x.dims[-1] * stats.padded_shape[-1])

    dtype = dtype or x.dtype  # a trace keeps no operand
    is_plain = _is_plain(x, stats.dtype) and dtype in ROUNDED
    bits = MANTISSA_BITS.get(dtype, 0)

    def compute(data: torch.Tensor, sums: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        row = by.shared(weights)
        is_own = sums.shape[:2] in ((1, 1), data.shape[:2]) and sums.shape[-1] % TILE == 0
        if is_plain and is_own and _fits(row, data) and can_run(data, sums):
            return _normalised(data, row, sums, share, epsilon, bits)
        total = sums[..., ::TILE].sum(-1, keepdim=True, dtype=torch.float32)
        scaled = by.scale(data.float() * total.mul_(share).add_(epsilon).rsqrt_(), weights)
        return finish(scaled, dtype)

    return launch(
        "rms_norm_post_all_gather",
        [x, stats, *by.operands],
        [Out(x.dims, dtype, x.layout, output_memory(x, memory_config))],
        compute,
        exact=True,
        attributes={
            "epsilon": epsilon,
            "program_config": program_config,
            "compute_kernel_config": compute_kernel_config,
            **_core_grid(x, use_2d_core_grid),
        },
    )


def _core_grid(x: Tensor, asked: bool | None) -> dict[str, Any]:
    """How an op says that cores share rows: shards lie on cores of their own."""
    return {"use_2d_core_grid": True} if asked and not x.is_sharded() else {}


def _sum_squares(x: torch.Tensor) -> torch.Tensor:
    """Sums of squares of rows [..., D] of bfloat16, D a multiple of 16, in tiles [..., 32]."""
    width = x.shape[-1]
    out = x.new_empty(*x.shape[:-1], TILE)
    call("sum_squares", x=x, out=out, rows=x.numel() // width, width=width)
    return out


def _normalised(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    sums: torch.Tensor | None,
    share: float,
    epsilon: float,
    mantissa_bits: int = 0,
) -> torch.Tensor:
    """Rows [r, c, ..., D] of bfloat16, D a multiple of 16, normalised, in blocks of bits if not 0.

    `weight` is float32 [D] or [r, c, ..., D]; `sums` are those of squares, in tiles' first columns
    [..., 32 n], of x's mesh or of one place, of which `share` is the mean (None: the row's own).
    """
    width, chips = x.shape[-1], x.shape[0] * x.shape[1]
    rows = x.numel() // (chips * width)
    out = torch.empty_like(x)
    tiles = 0 if sums is None else sums.shape[-1] // TILE
    has_sums = sums is not None and sums.numel() > rows * tiles * TILE
    steps = (tiles * TILE, TILE)  # from row to row, and from tile to tile
    if isinstance(sums, Gathered) and not sums.is_made and not has_sums:
        sums, steps = sums.source, (TILE, rows * TILE)
    call(
        "rms_norm", x=x, weight=weight, sums=sums, out=out, chips=chips, rows=rows, width=width,
        tiles=tiles, has_weights=weight is not None and weight.numel() > width,
        has_sums=has_sums, sums_row=steps[0], sums_tile=steps[1], mantissa_bits=mantissa_bits,
        share=share, epsilon=epsilon,
    )  # fmt: skip
    return out
