"""Products of mesh-batched data, as few and as large as the mesh allows.

Chips that share a weight add rows to one product, chips that share activations add columns; only
where both differ is there a product per chip.
"""

from __future__ import annotations

import torch

from backends.emulator.fidelity import cut
from backends.emulator.kernels import Weight, product
from backends.emulator.tensor import Tensor


class MeshWeight:
    """A constant operand [r, c, ..., K, N] as matrices [N, K]: one per chip, and all in one."""

    def __init__(self, data: torch.Tensor) -> None:
        *_, k, n = data.shape
        self.mesh, self.width = tuple(data.shape[:2]), n
        matrices = data.reshape(*self.mesh, k, n).mT.contiguous()
        self.joined = Weight(matrices.view(-1, k))
        self._own: dict[tuple[int, int], Weight] = {}
        self._matrices = matrices

    def own(self, row: int, col: int) -> Weight:
        """One chip's matrix."""
        key = (row if self.mesh[0] > 1 else 0, col if self.mesh[1] > 1 else 0)
        if key not in self._own:
            self._own[key] = Weight(self._matrices[key])
        return self._own[key]


def constant_product(
    x: torch.Tensor, tensor: Tensor, data: torch.Tensor, transposed: bool, bits: int | None,
    narrow: bool,
) -> torch.Tensor:  # fmt: skip
    """x [r, c, ..., M, K] times a weight whose forms are kept on its tensor."""
    forms = tensor.forms
    if forms.get("source") is not data:  # first use, or new values
        forms.clear()
        forms["source"] = data
    weight = forms.get((transposed, bits))
    if weight is None:
        seen = cut(data.mT if transposed else data, bits)
        weight = forms[transposed, bits] = MeshWeight(seen)
    if weight.mesh == (1, 1):
        return product(x, weight.joined, narrow=narrow)
    if x.shape[0] == 1 and x.shape[1] == 1:
        out = product(x, weight.joined, narrow=narrow)
        return out[0, 0].unflatten(-1, (*weight.mesh, -1)).movedim((-3, -2), (0, 1))
    rows, cols = (max(x.shape[i], weight.mesh[i]) for i in (0, 1))
    x = x.expand(rows, cols, *x.shape[2:])
    lines = [
        torch.stack([product(x[r, c], weight.own(r, c), narrow=narrow) for c in range(cols)])
        for r in range(rows)
    ]
    return torch.stack(lines)


def free_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Product of two tensors of any batch, in float32."""
    missing = x.dim() - w.dim()
    if missing > 0:
        w = w.reshape(*w.shape[:2], *(1,) * missing, *w.shape[2:])
    elif missing < 0:
        x = x.reshape(*x.shape[:2], *(1,) * -missing, *x.shape[2:])
    return torch.matmul(x.float(), w.float())
