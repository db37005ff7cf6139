"""Matrix products on the host: the same numbers by whichever library is fastest for the shape.

A product is [G, M, K] x [G, N, K] -> [G, M, N]. bfloat16 operands multiply exactly in float32, so
every candidate gives the same result up to the order of the sum. Which one wins depends on rows
and processor: each shape is measured once, at its first use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from backends.emulator.formats import keep_significant_bits
from backends.emulator.types import MathFidelity

# Significant bits of in1 (weights, source A) and in0 (activations, source B) that one pass of the
# multiplier sees, hidden bit included. LoFi is one pass; HiFi2 adds the low bits of in1.
PASS_BITS_IN1, PASS_BITS_IN0 = 5, 7
FLOAT32_BUDGET = 2 << 30  # bytes of float32 copies of weights kept to speed up many-row products

_budget = {"left": FLOAT32_BUDGET}
_choice: dict[tuple[int, int, int, int, bool], str] = {}


def product(
    x: torch.Tensor, weight: torch.Tensor, forms: dict[Any, Any], narrow: bool
) -> torch.Tensor:
    """x [G, M, K] (bfloat16 or float32) times weight [G, N, K] (bfloat16).

    `forms` keeps copies of a constant weight. `narrow`: the result is rounded to bfloat16 in any
    case, so a kernel that does so itself may be used.
    """
    if x.device.type == "cuda":
        return torch.bmm(x.to(weight.dtype), weight.mT)
    if x.dtype is not torch.bfloat16:
        return _float32(x, weight, forms)
    groups, rows, k = x.shape
    key = (groups, rows, k, weight.shape[1], narrow)
    kernel = _choice.get(key)
    if kernel is None:
        kernel = _choice[key] = _measure(x, weight, forms, narrow)
    return _KERNELS[kernel](x, weight, forms)


def _float32_weight(weight: torch.Tensor, forms: dict[Any, Any]) -> torch.Tensor:
    kept = forms.get("float32")
    if kept is None:
        kept = weight.float()
        size = kept.numel() * 4
        if size <= _budget["left"]:
            _budget["left"] -= size
            forms["float32"] = kept
    return kept


def _bfloat16(x: torch.Tensor, weight: torch.Tensor, forms: dict[Any, Any]) -> torch.Tensor:
    if x.shape[0] == 1:
        return F.linear(x[0], weight[0])[None]
    return torch.bmm(x, weight.mT)


def _float32(x: torch.Tensor, weight: torch.Tensor, forms: dict[Any, Any]) -> torch.Tensor:
    wide = _float32_weight(weight, forms)
    if x.shape[0] == 1:
        return torch.mm(x[0].float(), wide[0].T)[None]
    return torch.bmm(x.float(), wide.mT)


def _openblas(x: torch.Tensor, weight: torch.Tensor, forms: dict[Any, Any]) -> torch.Tensor:
    wide = _float32_weight(weight, forms)
    return torch.from_numpy(x.float().numpy() @ wide.mT.numpy())


_KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    "bfloat16": _bfloat16,
    "float32": _float32,
    "openblas": _openblas,
}


def _measure(x: torch.Tensor, weight: torch.Tensor, forms: dict[Any, Any], narrow: bool) -> str:
    """The fastest kernel for this shape: best of two runs after a warm-up."""
    names = [name for name in _KERNELS if narrow or name != "bfloat16"]
    if x.shape[1] >= 64:
        names = [name for name in names if name != "bfloat16"]  # never close from here on
    best, fastest = float("inf"), names[0]
    for name in names:
        run = _KERNELS[name]
        run(x, weight, forms)
        took = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            run(x, weight, forms)
            took = min(took, time.perf_counter() - start)
        if took < best:
            best, fastest = took, name
    return fastest


def operands(
    x: torch.Tensor, weight: torch.Tensor, fidelity: MathFidelity, weight_bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the multiplier sees of both operands at a fidelity of LoFi or HiFi2, HiFi4: all."""
    if fidelity in (MathFidelity.LoFi, MathFidelity.HiFi2):
        x = keep_significant_bits(x, PASS_BITS_IN0)
    if fidelity is MathFidelity.LoFi and weight_bits > PASS_BITS_IN1:
        weight = keep_significant_bits(weight, PASS_BITS_IN1)
    return x, weight
