"""Ops with a golden function in the wheel: the same call on random operands, for both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def operand(*shape: int, seed: int) -> torch.Tensor:
    """Normal values that bfloat16 holds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16().float()


X = operand(2, 3, 32, 64, seed=1)
Y = operand(2, 3, 32, 64, seed=2)
ROW = operand(1, 1, 1, 64, seed=3)
WEIGHT = operand(1, 1, 64, 96, seed=4)
BIAS = operand(1, 1, 1, 96, seed=5)
BATCH = operand(2, 3, 64, 96, seed=6)

# name -> operands, and the call on an implementation's operands; `t` has the names of ttnn, and
# t.op(name) the golden or the emulated function
CASES: dict[str, tuple[list[torch.Tensor], Callable[..., Any]]] = {
    "matmul": ([X, WEIGHT], lambda t, x, w: t.op("matmul")(x, w)),
    "matmul, batched": ([X, BATCH], lambda t, x, w: t.op("matmul")(x, w)),
    "linear with bias": ([X, WEIGHT, BIAS], lambda t, x, w, b: t.op("linear")(x, w, bias=b)),
    "linear with silu": ([X, WEIGHT], lambda t, x, w: t.op("linear")(x, w, activation="silu")),
    "add": ([X, Y], lambda t, x, y: t.op("add")(x, y)),
    "add, row to all": ([X, ROW], lambda t, x, y: t.op("add")(x, y)),
    "add, number": ([X], lambda t, x: t.op("add")(x, 1.5)),
    "multiply": ([X, Y], lambda t, x, y: t.op("multiply")(x, y)),
    "silu and multiply": (
        [X, Y],
        lambda t, x, y: t.op("multiply")(x, y, input_tensor_a_activations=[t.UnaryOpType.SILU]),
    ),
    "silu": ([X], lambda t, x: t.op("silu")(x)),
    "typecast to bfloat8_b": ([X], lambda t, x: t.op("typecast")(x, t.bfloat8_b)),
    "typecast to bfloat4_b": ([X], lambda t, x: t.op("typecast")(x, t.bfloat4_b)),
    "reshape": ([X], lambda t, x: t.op("reshape")(x, (1, 6, 64, 32))),
    "slice": ([X], lambda t, x: t.op("slice")(x, [1, 0, 3, 16], [2, 3, 31, 64])),
    "concat": ([X, Y], lambda t, x, y: t.op("concat")([x, y], dim=2)),
    "permute": ([X], lambda t, x: t.op("permute")(x, (0, 2, 1, 3))),
    "transpose": ([X], lambda t, x: t.op("transpose")(x, -2, -1)),
    "pad": (
        [X],
        lambda t, x: t.op("pad")(x, [(0, 0), (0, 0), (0, 32), (0, 64)], 1.0),
    ),
}


class Golden:
    """The wheel's names, with golden functions for ops."""

    def __init__(self, ttnn: Any) -> None:
        self.ttnn = ttnn

    def op(self, name: str) -> Callable[..., Any]:
        function = getattr(self.ttnn, name)
        return self.ttnn.get_golden_function(getattr(function, "wheel", function))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ttnn, name)


def from_wheel(ttnn: Any) -> dict[str, torch.Tensor]:
    """What the golden functions give."""
    return {name: call(Golden(ttnn), *operands).float() for name, (operands, call) in CASES.items()}
