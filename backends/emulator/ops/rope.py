"""Rotary position embedding: x cos + (x trans) sin, the transformation on every 32 columns alike.

The usual transformation maps neighbours (a, b) to (-b, a); with one angle per pair that is a
product of complex numbers, which is what is computed then.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from backends.emulator.api.types import (
    TILE,
    DataType,
    Layout,
    MemoryConfig,
    TensorMemoryLayout,
    overlap,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.kv.remember import remember_last
from backends.emulator.launch import Out, launch, op, require
from backends.emulator.loops.call import call, can_run
from backends.emulator.loops.moves import contiguous

_NAMES = ("input", "cos", "sin", "transformation matrix")


def _check(operands: list[Tensor], memory: MemoryConfig, *, decode: bool) -> None:
    x, cos, sin, turn = operands
    for name, tensor in zip(_NAMES, operands, strict=True):
        require(tensor.layout is Layout.TILE, f"{name} tensor to rotary embedding must be tilized")
    require(x.dims[-1] <= 256, "Head dim must be less than 256")
    require(
        all(tensor.dtype is DataType.BFLOAT16 for tensor in operands),
        "All input tensors must have dtype = bfloat16",
    )
    layouts = [tensor.memory_config().memory_layout for tensor in operands]
    require(
        layouts[0] is memory.memory_layout,
        "Input tensor and output tensor must have same memory layout",
    )
    if decode:
        names = ("Sharded inputs", "cos tensor", "sin tensor", "transformation matrix")
        for name, layout in zip(names, layouts, strict=True):
            require(
                layout is TensorMemoryLayout.HEIGHT_SHARDED,
                f"{name} for RoPE must be HEIGHT_SHARDED.",
            )
        require(
            cos.dims[1] == sin.dims[1] == x.dims[1],
            "Cos and Sin must have the same batch size as the input",
        )
    else:
        require(
            cos.dims[0] == 1 and cos.dims[-1] == x.dims[-1] and cos.dims[1] in (1, x.dims[1]),
            f"Cos dims must match input dims: cos.shape = {cos.shape}, head_dim = {x.dims[-1]}",
        )
        require(
            cos.dims[2] >= x.dims[2],  # silicon would read past the end of the table
            f"Cos and Sin hold {cos.dims[2]} positions, the input has {x.dims[2]}",
        )
        require(
            turn.dims[-2] == TILE, "Transformation matrix must have 3rd dim equal to TILE_HEIGHT"
        )
    require(turn.dims[-1] == TILE, "Transformation matrix must have 4th dim equal to TILE_WIDTH")


def check_together(q: Tensor, k: Tensor, tables: list[Tensor]) -> None:
    """One query and one key per user, on cores of their own; the tables hold rows for both."""
    cos, sin, turn = tables
    for name, tensor in zip(("q", "k", *_NAMES[1:]), (q, k, *tables), strict=True):
        layout = Layout.TILE if tensor is turn else q.layout
        require(tensor.layout is layout, f"{name} tensor must be in layout Layout::{layout.name}")
        require(tensor.dtype is DataType.BFLOAT16, "All input tensors must have dtype = bfloat16")
        require(tensor.is_sharded(), f"{name} tensor for RoPE must be HEIGHT_SHARDED.")
    require(cos.dims == sin.dims, "Cos and Sin dims must match")
    require(
        cos.dims[1] == q.dims[1] + k.dims[1],
        f"Cos and Sin hold {cos.dims[1]} users, q and k together {q.dims[1] + k.dims[1]}",
    )
    if q.layout is Layout.ROW_MAJOR:  # a user's heads are one tile, so are its tables' rows
        require(
            q.dims[2] * q.dims[3] == TILE * TILE and cos.dims[2:] == q.dims[2:] == k.dims[2:],
            f"rows of heads must fill a tile, and the tables too, got {q.shape} and {cos.shape}",
        )
    grids = [x.memory_config().shard_spec.grid for x in (q, k)]
    require(not overlap(*grids), "Q and K must not overlap")
    require(turn.dims[-1] == TILE, "Transformation matrix must have 4th dim equal to TILE_WIDTH")


@remember_last
def _neighbours(turn: torch.Tensor) -> bool:
    """Whether the transformation is the usual one, on every chip and core."""
    wanted = torch.zeros(TILE, TILE, dtype=turn.dtype, device=turn.device)
    even = torch.arange(0, TILE, 2, device=turn.device)
    wanted[even, even + 1], wanted[even + 1, even] = 1, -1
    return bool((turn.unflatten(-2, (-1, TILE)) == wanted).all())


@remember_last
def _as_complex(cos: torch.Tensor, sin: torch.Tensor, *, of: str) -> torch.Tensor | None:
    """cos + i sin of every pair of columns; None where the columns of a pair differ.

    Remembered apart for what they turn: queries and keys take turns.
    """
    parts = []
    for table in (cos, sin):
        first, second = table.unflatten(-1, (-1, 2)).unbind(-1)
        if not torch.equal(first, second):
            return None
        parts.append(first.float())
    return torch.complex(*parts)


@remember_last
def _parted(
    cos: torch.Tensor, sin: torch.Tensor, *, users: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Tables [r, c, 1, 2 B, 1, W] of queries, and those of keys."""
    tables = (cos, sin)
    return [contiguous(x[:, :, :, :users]) for x in tables], [
        contiguous(x[:, :, :, users:]) for x in tables
    ]


@op("experimental.rotary_embedding_llama")
def rotary_embedding_llama(
    input_tensor: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    trans_mat: Tensor,
    *,
    is_decode_mode: bool = False,
    memory_config: MemoryConfig | None = None,
    compute_kernel_config: Any = None,
) -> Tensor:
    """[N, H, S, W] by tables [1, 1 or H, S or more, W]; decode: [1, B, H, W] by [1, B, 1, W]."""
    operands = [input_tensor, cos_cache, sin_cache, trans_mat]
    memory = memory_config or input_tensor.memory_config()
    _check(operands, memory, decode=is_decode_mode)
    # a decode table's rows beyond the first are padding
    rows = 1 if is_decode_mode else input_tensor.dims[2]

    def compute(*data: torch.Tensor) -> torch.Tensor:
        return _turned(rows, *data)

    return launch(
        "experimental.rotary_embedding_llama",
        operands,
        [Out(input_tensor.dims, input_tensor.dtype, Layout.TILE, memory)],
        compute,
        attributes={"is_decode_mode": is_decode_mode},
    )


@op("experimental.rotary_embedding_llama_fused_qk")
def rotary_embedding_llama_fused_qk(
    q_input_tensor: Tensor,
    k_input_tensor: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    trans_mat: Tensor,
    *,
    compute_kernel_config: Any = None,
) -> tuple[Tensor, Tensor]:
    """Decode queries [1, B, H, W] and keys [1, B, K, W] by tables [1, 2 B, 1, W], keys' last.

    Heads in rows that fill a tile, 1024 values, want a row of the tables for each head.
    """
    q, k, users = q_input_tensor, k_input_tensor, q_input_tensor.dims[1]
    tables = [cos_cache, sin_cache, trans_mat]
    check_together(q, k, tables)
    rows = 1 if q.layout is Layout.TILE else q.dims[2]

    def compute(
        query: torch.Tensor, key: torch.Tensor, *shared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin, turn = shared
        first, last = _parted(cos, sin, users=users)
        return (
            _turned(rows, query, first[0], first[1], turn, of="queries"),
            _turned(rows, key, last[0], last[1], turn, of="keys"),
        )

    return launch(
        "experimental.rotary_embedding_llama_fused_qk",
        [q, k, *tables],
        [Out(x.dims, x.dtype, x.layout, x.memory_config()) for x in (q, k)],
        compute,
    )


def _turned(
    rows: int,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    turn: torch.Tensor,
    *,
    of: str = "both",
) -> torch.Tensor:
    """x turned by the first `rows` rows of the tables."""
    if _neighbours(turn) and can_run(cos, sin):
        turned = rotate(x, cos, sin, rows)
        if turned is not None:
            return turned
    wide = x.float()
    angle = _as_complex(cos, sin, of=of) if _neighbours(turn) else None
    if angle is not None:
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * angle[..., :rows, :]).flatten(-2)
    return _by_matrix(wide, cos[..., :rows, :], sin[..., :rows, :], turn)


def _by_matrix(
    wide: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turn: torch.Tensor
) -> torch.Tensor:
    """Any transformation: the first core's, as in prefill there is only one."""
    width = wide.shape[-1]
    padded = torch.nn.functional.pad(wide, (0, -width % TILE))
    matrix = turn[:, :, :1, :1, :TILE, :].float().unsqueeze(2)
    turned = padded.unflatten(-1, (-1, TILE)) @ matrix
    return (wide * cos).addcmul_(turned.flatten(-2)[..., :width], sin.float())


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, table_rows: int
) -> torch.Tensor | None:
    """Neighbouring columns of x [..., M, W] turned by tables [..., T, W], all bfloat16.

    Of the tables the first `table_rows` count: one for all of x's rows, or one for each. None
    where matrices share tables in another way than by leading dims of 1.
    """
    *_, rows, width = x.shape
    own = cos.shape[:-2]
    while own and own[0] == 1:
        own = own[1:]
    if own != x.shape[x.dim() - 2 - len(own) : -2]:
        return None
    out = torch.empty(x.shape, dtype=x.dtype)
    steps = _steps(x)
    if steps is None:
        x = contiguous(x)
        steps = _steps(x)
        assert steps is not None
    (outer, apart), (some, beside) = steps
    call(
        "rotate", x=x, cosine=cos, sine=sin, out=out, outer=outer * some, inner=rows, width=width,
        tables=math.prod(own), per_table=cos.shape[-2], per_row=table_rows == rows > 1,
        stride=x.stride(-2), some=some, beside=beside, apart=apart, work=x.numel(),
    )  # fmt: skip
    return out


def _steps(x: torch.Tensor) -> list[tuple[int, int]] | None:
    """How matrices of x [..., M, W] lie: groups, how far apart, and in each so many, how far.

    None where that is not enough to say, or columns do not lie together.
    """
    steps: list[tuple[int, int]] = []
    for size, step in zip(x.shape[:-2], x.stride(), strict=False):
        if size == 1:
            continue
        if steps and steps[-1][1] == size * step:
            steps[-1] = (steps[-1][0] * size, step)
        else:
            steps.append((size, step))
    if len(steps) > 2 or x.stride(-1) != 1:
        return None
    return [(1, 0)] * (2 - len(steps)) + steps
