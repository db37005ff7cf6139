"""Matrix products on the host: the same numbers by whichever library is fastest for the shape.

A product is x [..., K] times weight [N, K]. bfloat16 operands multiply exactly in float32, so every
candidate gives the same result up to the order of the sum. Which one wins depends on rows and
processor: each shape is measured once, at its first use.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

FLOAT32_BUDGET = 3 << 30  # bytes of float32 copies of weights kept to speed up many-row products
_MEASURED_ROWS = 512  # a kernel that is best for so many rows is best for more
_LONG_ROWS = 64  # from here on arithmetic, not reading the weight, takes the time
_PATIENCE_S = 0.1  # a kernel that takes longer is not tried twice

_budget = {"left": FLOAT32_BUDGET}
_scratch: dict[str, torch.Tensor] = {}
_choice: dict[tuple[int, int, int, bool], str] = {}


class Weight:
    """One constant [N, K] bfloat16 matrix and its copies in forms that kernels like."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self._wide: torch.Tensor | None = None
        self._packed: torch.Tensor | None = None

    def wide(self) -> torch.Tensor:
        """In float32: kept while there is budget, else converted each time."""
        if self._wide is not None:
            return self._wide
        wide = self.matrix.float()
        if _take(wide):
            self._wide = wide
        return wide

    def packed(self) -> torch.Tensor:
        """In oneDNN's own order of float32 blocks."""
        if self._packed is None:
            packed = torch.ops.mkldnn._reorder_linear_weight(self.matrix.float())
            if not _take(self.matrix):
                return packed
            self._packed = packed
        return self._packed

    def keep(self, kernel: str) -> None:
        """Drop the copies that the chosen kernel does not read."""
        if kernel in ("packed", "narrow") and self._wide is not None:
            _budget["left"] += self._wide.numel() * 4
            self._wide = None
        if kernel != "packed" and self._packed is not None:
            _budget["left"] += self.matrix.numel() * 4
            self._packed = None


def _take(matrix: torch.Tensor) -> bool:
    """Whether the budget had room for a float32 copy of a matrix."""
    size = matrix.numel() * 4
    if size > _budget["left"]:
        return False
    _budget["left"] -= size
    return True


def _narrow(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    return F.linear(x, weight.matrix)


def _wide(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    return F.linear(x.float(), weight.wide())


def _packed(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.float(), weight.packed(), None, "none", [], "")


def _openblas(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]).float().numpy()
    out = torch.from_numpy(rows @ weight.wide().numpy().T)
    return out.view(*x.shape[:-1], out.shape[-1])


_KERNELS: dict[str, Callable[[torch.Tensor, Weight], torch.Tensor]] = {
    "narrow": _narrow,  # bfloat16 in and out, accumulated in float32
    "wide": _wide,
    "openblas": _openblas,
}
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _KERNELS["packed"] = _packed


def product(x: torch.Tensor, weight: Weight, *, narrow: bool) -> torch.Tensor:
    """x [..., K] (bfloat16 or float32) times the weight, in bfloat16 or float32.

    `narrow`: the result is rounded to bfloat16 in any case, so a kernel may do so itself.
    """
    if x.is_cuda:
        return _on_gpu(x, weight.matrix, narrow)
    if x.dtype is not torch.bfloat16:
        narrow = False
    n, k = weight.matrix.shape
    key = (x.numel() // k, k, n, narrow)
    name = _choice.get(key)
    if name is None:
        name = _choice[key] = _fastest(x, weight, narrow)
    return _KERNELS[name](x, weight)


def _on_gpu(x: torch.Tensor, matrix: torch.Tensor, narrow: bool) -> torch.Tensor:
    if x.dtype is not torch.bfloat16:
        return F.linear(x, matrix.float())
    if narrow:
        return F.linear(x, matrix)
    out = torch.mm(x.reshape(-1, x.shape[-1]), matrix.mT, out_dtype=torch.float32)
    return out.view(*x.shape[:-1], -1)


def _evict() -> None:
    """Push weights out of the processor's caches by reading something larger than them."""
    if "evict" not in _scratch:
        _scratch["evict"] = torch.zeros(16 << 20)
    _scratch["evict"].sum()


def _fastest(x: torch.Tensor, weight: Weight, narrow: bool) -> str:
    """The fastest kernel for this shape: best of three runs after a warm-up.

    In a model other weights are read in between, so few-row products find theirs in memory: each
    run starts with cold caches. OpenBLAS brings threads of its own, which fight with torch's for
    the cores when products are short, so it only competes for long ones.
    """
    x = x.reshape(-1, x.shape[-1])[:_MEASURED_ROWS]
    best, fastest = float("inf"), ""
    for name, run in _KERNELS.items():
        # many rows in bfloat16 are slow beyond measure without an instruction for it
        if name == "narrow" and (not narrow or x.shape[0] > 64):
            continue
        if name == "openblas" and x.shape[0] < _LONG_ROWS:
            continue
        took = float("inf")
        for attempt in range(4):
            if x.shape[0] < _LONG_ROWS:
                _evict()
            start = time.perf_counter()
            run(x, weight)
            elapsed = time.perf_counter() - start
            if attempt or elapsed > _PATIENCE_S:
                took = min(took, elapsed)
            if elapsed > _PATIENCE_S:
                break
        if took < best:
            best, fastest = took, name
    weight.keep(fastest)
    return fastest
