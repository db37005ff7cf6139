"""Weights without numbers: a checkpoint whose tensors are shapes.

Arranging weights (reshape, transpose, pad, join, pick) needs only these few operations; torch's own
meta tensors do the same, but load its compiler first, which takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from models.checkpoints.base import PlaceholderCheckpoint


class ShapeTensor:
    """Answers like a tensor of a shape, as far as arranging weights asks."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def dim(self) -> int:
        return len(self.shape)

    def float(self) -> ShapeTensor:
        return self

    to = contiguous = tanh = float

    @property
    def T(self) -> ShapeTensor:
        return ShapeTensor(self.shape[::-1])

    @property
    def mT(self) -> ShapeTensor:
        return ShapeTensor((*self.shape[:-2], self.shape[-1], self.shape[-2]))

    def __mul__(self, other: object) -> ShapeTensor:
        return self

    def new_zeros(self, shape: Sequence[int], **options: object) -> ShapeTensor:
        return ShapeTensor(shape)

    def __setitem__(self, index: object, values: object) -> None:
        """Numbers are not kept."""

    def reshape(self, *shape: int) -> ShapeTensor:
        """As torch's, one size may be -1."""
        known = math.prod(n for n in shape if n != -1)
        rest = math.prod(self.shape) // known if known else 0
        return ShapeTensor([rest if n == -1 else n for n in shape])

    def __getitem__(self, index: Any) -> ShapeTensor:
        """Integers, slices and None."""
        parts = index if isinstance(index, tuple) else (index,)
        left: list[int] = list(self.shape)
        shape: list[int] = []
        for part in parts:
            if part is None:
                shape.append(1)
            elif isinstance(part, int):
                left.pop(0)
            else:
                every = range(left.pop(0))
                shape.append(len(every[part.start : part.stop : part.step]))
        return ShapeTensor([*shape, *left])

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> ShapeTensor:
        name = function.__name__
        if name == "cat":
            parts = args[0]
            dim = (args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)) % parts[0].dim()
            shape = list(parts[0].shape)
            shape[dim] = sum(part.shape[dim] for part in parts)
            return cls(shape)
        if name == "zeros_like":
            return cls(args[0].shape)
        if name in ("pad", "_pad"):
            shape = list(args[0].shape)
            for i, (before, after) in enumerate(zip(args[1][::2], args[1][1::2], strict=True)):
                shape[-1 - i] += before + after
            return cls(shape)
        raise NotImplementedError(f"torch.{name} of a tensor without numbers")


class ShapeCheckpoint(PlaceholderCheckpoint):
    """Right names and shapes, no data at all: for dry runs and op lists."""

    def get(self, name: str) -> Any:
        return ShapeTensor(self._shapes[name])
