"""Products of mesh-batched data, as few and as large as the mesh allows.

Chips that share a weight add rows to one product, chips that share activations add columns; only
where both differ is there a product per chip.
"""

from __future__ import annotations

import torch

from backends.emulator.fidelity import cut
from backends.emulator.kernels import Product, Weight
from backends.emulator.tensor import Tensor


def constant_product(
    x: torch.Tensor, tensor: Tensor, data: torch.Tensor, transposed: bool, bits: int | None,
    narrow: bool,
) -> torch.Tensor:  # fmt: skip
    """x [r, c, ..., M, K] times a weight; what was made of the weight is kept on its tensor."""
    forms = tensor.forms
    if forms.get("source") is not data:  # first use, or new values
        forms.clear()
        forms["source"] = data
    key = (x.shape, x.dtype, transposed, bits, narrow)
    run = forms.get(key)
    if run is None:
        weight = forms.get((transposed, bits))
        if weight is None:
            seen = cut(data.mT if transposed else data, bits)
            weight = forms[transposed, bits] = MeshWeight(seen)
        run = forms[key] = weight.product(x, narrow)
    return run(x)


class MeshWeight:
    """A constant operand [r, c, ..., K, N] as matrices [N, K]: one per chip, and all in one."""

    def __init__(self, data: torch.Tensor) -> None:
        *_, k, n = data.shape
        self.mesh = tuple(data.shape[:2])
        self._matrices = data.reshape(*self.mesh, k, n).mT.contiguous()
        self._joined = Weight(self._matrices.view(-1, k))
        self._own: dict[tuple[int, int], Weight] = {}

    def product(self, x: torch.Tensor, narrow: bool) -> Product:
        """The function that multiplies mesh-batched data of x's shape by this weight."""
        if self.mesh == (1, 1):
            return self._joined.product(x, narrow=narrow)
        if x.shape[0] == 1 and x.shape[1] == 1:
            joined, mesh = self._joined.product(x, narrow=narrow), self.mesh
            return lambda x: joined(x)[0, 0].unflatten(-1, (*mesh, -1)).movedim((-3, -2), (0, 1))
        rows, cols = (max(x.shape[axis], self.mesh[axis]) for axis in (0, 1))
        own = {
            (r, c): self._weight(r, c).product(x[0, 0], narrow=narrow)
            for r in range(rows)
            for c in range(cols)
        }

        def run(x: torch.Tensor) -> torch.Tensor:
            x = x.expand(rows, cols, *x.shape[2:])
            lines = [torch.stack([own[r, c](x[r, c]) for c in range(cols)]) for r in range(rows)]
            return torch.stack(lines)

        return run

    def _weight(self, row: int, col: int) -> Weight:
        """One chip's matrix."""
        key = (row if self.mesh[0] > 1 else 0, col if self.mesh[1] > 1 else 0)
        if key not in self._own:
            self._own[key] = Weight(self._matrices[key])
        return self._own[key]


def free_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Product of two tensors of any batch, in float32."""
    missing = x.dim() - w.dim()
    if missing > 0:
        w = w.reshape(*w.shape[:2], *(1,) * missing, *w.shape[2:])
    elif missing < 0:
        x = x.reshape(*x.shape[:2], *(1,) * -missing, *x.shape[2:])
    return torch.matmul(x.float(), w.float())
