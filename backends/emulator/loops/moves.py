"""Tensors arranged anew by the C loops, where there are some; values stay as they are."""

from __future__ import annotations

import torch

from backends.emulator.loops import native
from backends.emulator.loops.call import call, can_run

_MOST_DIMS = 4  # of a copy, beside the bytes that lie together


def mesh_steps(x: torch.Tensor) -> tuple[int, int]:
    """How far rows and columns of a mesh lie apart in data [r, c, ...], 0 where they share it."""
    return (x.stride(0) if x.shape[0] > 1 else 0, x.stride(1) if x.shape[1] > 1 else 0)


def contiguous(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy of it in the order of its dims."""
    if x.is_contiguous():
        return x
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    copy_into(out, x)
    return out


def reshaped(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """x in another shape: a view where its values' places allow one."""
    try:
        return x.view(shape)
    except RuntimeError:
        return contiguous(x).view(shape)


def padded(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """x with zeros after the ends of its dims, up to a shape."""
    if tuple(x.shape) == tuple(shape):
        return x
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    if native.library() is not None and x.device.type == "cpu":
        call("clear", out=out, bytes=out.nbytes, work=out.numel())
    else:
        out.zero_()
    copy_into(out[tuple(slice(size) for size in x.shape)], x)
    return out


def joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Tensors of one type side by side along a dim."""
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    out = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device)
    first = 0
    for part in parts:
        copy_into(out.narrow(dim, first, part.shape[dim]), part)
        first += part.shape[dim]
    return out


def gathered(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor | None:
    """Rows [r, c, n, D] of bfloat16 tables [r, c, V, D] by int32 numbers [r, c, n] of each chip.

    Each of r and c is 1 where all share it. None where the C loop does not take them.
    """
    is_taken = (table.dtype, ids.dtype) == (torch.bfloat16, torch.int32) and table.stride(-1) == 1
    if not is_taken or table.device.type != "cpu" or not can_run(ids):
        return None
    mesh = [max(a, b) for a, b in zip(table.shape[:2], ids.shape[:2], strict=True)]
    rows, width = table.shape[2:]
    out, (table_r, table_c), (ids_r, ids_c) = (
        table.new_empty(*mesh, ids.shape[2], width), mesh_steps(table), mesh_steps(ids)
    )  # fmt: skip
    done = call(
        "gather_rows", table=table, ids=ids, out=out, chips=mesh[0] * mesh[1], cols=mesh[1],
        rows=rows, count=ids.shape[2], width=width, apart=table.stride(2), table_r=table_r,
        table_c=table_c, ids_r=ids_r, ids_c=ids_c, work=out.numel(),
    )  # fmt: skip
    return out if done else None


def copy_into(out: torch.Tensor, x: torch.Tensor) -> None:
    """Values of x, of any shape that spreads to that of `out`, put there."""
    x = x.expand(out.shape)
    dims = _merged(out, x)
    if native.library() is None or x.device.type != "cpu" or len(dims) > _MOST_DIMS + 1:
        out.copy_(x)
        return
    size = x.element_size()
    lies_together = dims and dims[-1][1] == dims[-1][2] == 1
    run = dims.pop()[0] if lies_together else 1
    dims = [(1, 0, 0)] * (_MOST_DIMS - len(dims)) + dims
    if len(dims) > _MOST_DIMS:
        out.copy_(x)
        return
    given: dict[str, int] = {}
    for at, (count, from_step, to_step) in enumerate(dims):
        given |= {f"size{at}": count, f"x{at}": from_step * size, f"out{at}": to_step * size}
    call("copy", x=x, out=out, bytes=run * size, work=out.numel(), **given)


def _merged(out: torch.Tensor, x: torch.Tensor) -> list[tuple[int, int, int]]:
    """(size, step in x, step in out) of the fewest dims that tell where values lie."""
    dims: list[tuple[int, int, int]] = []
    for size, from_step, to_step in zip(x.shape, x.stride(), out.stride(), strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == from_step * size and dims[-1][2] == to_step * size:
            dims[-1] = (dims[-1][0] * size, from_step, to_step)
        else:
            dims.append((size, from_step, to_step))
    return dims
