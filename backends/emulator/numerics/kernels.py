"""Matrix products by libraries: the same numbers by whichever is fastest for the shape.

For what the C loops (loops/products.c) do not take: float32 results, GPUs, no compiler. A product
is x [..., K] times weight [N, K]. bfloat16 operands multiply exactly in float32, so every candidate
gives the same result up to the order of the sum. Which one wins depends on rows and processor: each
shape is measured once, at its first use. Where digits are to be the same in every run, `fixed`
chooses by a rule instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from backends.emulator.loops import native

Product = Callable[[torch.Tensor], torch.Tensor]

_MEASURED_ROWS = 512  # the best kernel for 512 rows is the best for more
_ROUNDS, _PATIENCE_S = 6, 0.1  # each kernel is tried so often, or for so long
_FEW_ROWS = 64  # up to here reading the weight, not arithmetic, takes the time
_CACHE_FLOATS = 12 << 20  # more than processors' caches hold


class Kernel(NamedTuple):
    """One way to multiply: a form of the weight it reads (made once), and the product."""

    form: str  # kernels that read the same form share it
    make: Callable[[torch.Tensor, int], Any]  # of the weight and the number of rows
    run: Callable[[torch.Tensor, Any], torch.Tensor]
    is_narrow: bool  # the result is bfloat16, accumulated in float32


def _openblas(x: torch.Tensor, form: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]).float().numpy()
    out = torch.from_numpy(rows @ form.numpy().T)
    return out.view(*x.shape[:-1], out.shape[-1])


def _packed(x: torch.Tensor, form: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, form, None, "none", [], "")


def _pack(matrix: torch.Tensor, rows: int) -> torch.Tensor:
    """The weight in the order of blocks that oneDNN chooses for `rows`."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix, rows)


def _float32(matrix: torch.Tensor, rows: int) -> torch.Tensor:
    return matrix.float()


KERNELS = {
    "narrow": Kernel("", lambda matrix, rows: matrix, F.linear, True),
    "wide": Kernel("float32", _float32, lambda x, form: F.linear(x.float(), form), False),
    "openblas": Kernel("float32", _float32, _openblas, False),
}
_has_onednn = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_reorder_linear_weight"
)
_has_bfloat16 = _has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
if _has_onednn:
    KERNELS["wide, packed"] = Kernel(
        "packed float32",
        lambda matrix, rows: _pack(matrix.float(), rows),
        lambda x, form: _packed(x.float(), form),
        False,
    )
if _has_bfloat16:
    KERNELS["narrow, packed"] = Kernel("packed", _pack, _packed, True)

# bytes of weight forms that may be kept: a quarter of the machine's memory
_budget = {"left": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4}
_choice: dict[tuple[int, int, int, bool], str] = {}
_state = {"fixed": False}


def take_room(size: int) -> bool:
    """Whether a weight's form of `size` bytes may be kept; if so it is counted from now on."""
    if size > _budget["left"]:
        return False
    _budget["left"] -= size
    return True


def give_room(size: int) -> None:
    """Bytes that are no longer kept."""
    _budget["left"] += size


@contextmanager
def fixed() -> Iterator[None]:
    """Kernels by a rule: on one kind of processor every run gives the same digits."""
    before = _state["fixed"]
    _state["fixed"] = True
    try:
        yield
    finally:
        _state["fixed"] = before


def is_fixed() -> bool:
    """Whether kernels are chosen by a rule, see `fixed`."""
    return _state["fixed"]


def arithmetic() -> str:
    """What decides the last digits where kernels are fixed: instructions, libraries, C loops."""
    units = "bfloat16 units" if _has_bfloat16 else "no bfloat16 units"
    loops = f"C loops by {native.products()}" if native.library() is not None else "no C loops"
    onednn = "oneDNN" if _has_onednn else "no oneDNN"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__.split('+')[0]}, {capability}, {units}, {onednn}, {loops}"


def _by_rule(rows: int, narrow: bool) -> str:
    """Fast on the processors that we know, but not measured."""
    if narrow and _has_bfloat16:
        return "narrow, packed"
    if narrow and rows == 1:
        return "narrow"
    return "wide, packed" if _has_onednn else "wide"


class Weight:
    """One constant [N, K] matrix and the forms of it that kernels read."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self._forms: dict[tuple[str, int], Any] = {}
        self._kept_bytes = 0

    def __del__(self) -> None:
        give_room(self._kept_bytes)

    def product(self, x: torch.Tensor, *, narrow: bool) -> Product:
        """The function that multiplies tensors of x's shape by this weight.

        `narrow`: the result is rounded to bfloat16 in any case, so the kernel may do so itself.
        """
        if x.is_cuda:
            return lambda x: _on_gpu(x, self.matrix, narrow)
        narrow = narrow and x.dtype is self.matrix.dtype is torch.bfloat16
        n, k = self.matrix.shape
        rows = x.numel() // k
        key = (rows, k, n, narrow)
        if is_fixed():
            kernel = KERNELS[_by_rule(rows, narrow)]
        else:
            if key not in _choice:
                _choice[key] = self._fastest(x.reshape(rows, k)[:_MEASURED_ROWS], narrow)
            kernel = KERNELS[_choice[key]]
        if not kernel.form:
            return lambda x: kernel.run(x, self.matrix)
        form = self._form(kernel, rows)
        if form is None:  # no room: convert as it is used
            return lambda x: F.linear(x.float(), self.matrix.float())
        return lambda x: kernel.run(x, form)

    def _form(self, kernel: Kernel, rows: int) -> Any:
        """The form a kernel reads, kept while there is budget; None when there is no more."""
        key = (kernel.form, rows if "packed" in kernel.form else 0)
        if key not in self._forms:
            size = self.matrix.numel() * (4 if "float32" in kernel.form else 2)
            if not take_room(size):
                return None
            self._kept_bytes += size
            self._forms[key] = kernel.make(self.matrix, rows)
        return self._forms[key]

    def _fastest(self, x: torch.Tensor, narrow: bool) -> str:
        """The kernel with the shortest run for these rows; they take turns, for a busy machine.

        A model reads other weights in between, so products of few rows find theirs in memory:
        caches are emptied before each run.
        """
        few = x.shape[0] <= _FEW_ROWS
        others = torch.ones(_CACHE_FLOATS) if few else None
        forms = {
            name: kernel.make(self.matrix, x.shape[0])
            for name, kernel in KERNELS.items()
            if (narrow or not kernel.is_narrow)
            # slow beyond measure for many rows without instructions for bfloat16
            and (name != "narrow" or few or _has_bfloat16)
            # a second pool of threads disturbs the first: only for long products
            and (name != "openblas" or not few)
        }
        shortest = dict.fromkeys(forms, float("inf"))
        spent = dict.fromkeys(forms, 0.0)
        for _ in range(_ROUNDS):
            for name, form in forms.items():
                if spent[name] < _PATIENCE_S:
                    if others is not None:
                        others.sum()
                    start = time.perf_counter()
                    KERNELS[name].run(x, form)
                    took = time.perf_counter() - start
                    shortest[name] = min(shortest[name], took)
                    spent[name] += took
        return min(shortest, key=lambda name: shortest[name])


def _on_gpu(x: torch.Tensor, matrix: torch.Tensor, narrow: bool) -> torch.Tensor:
    if x.dtype is not torch.bfloat16:
        return F.linear(x, matrix.float())
    if narrow:
        return F.linear(x, matrix)
    out = torch.mm(x.reshape(-1, x.shape[-1]), matrix.mT, out_dtype=torch.float32)
    return out.view(*x.shape[:-1], -1)
