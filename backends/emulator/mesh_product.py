"""Products of mesh-batched data, as few and as large as the mesh allows.

Along each mesh axis, chips that share a weight add rows to one product and chips that share
activations add columns; only along an axis where both differ is there a product per place.
"""

from __future__ import annotations

import torch

from backends.emulator.fidelity import cut
from backends.emulator.kernels import Product, Weight, is_fixed
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
    key = (x.shape, x.dtype, transposed, bits, narrow, is_fixed())
    run = forms.get(key)
    if run is None:
        weight = forms.get((transposed, bits))
        if weight is None:
            seen = cut(data.mT if transposed else data, bits)
            weight = forms[transposed, bits] = MeshWeight(seen)
        run = forms[key] = weight.product(x, narrow)
    return run(x)


class MeshWeight:
    """A constant operand [r, c, ..., K, N] as matrices [N, K], joined as products want them."""

    def __init__(self, data: torch.Tensor) -> None:
        *_, k, n = data.shape
        self.mesh = tuple(data.shape[:2])
        self._matrices = data.reshape(*self.mesh, k, n).mT.contiguous()
        self._joined: dict[tuple[int | None, int | None], Weight] = {}

    def product(self, x: torch.Tensor, narrow: bool) -> Product:
        """The function that multiplies mesh-batched data of x's shape by this weight."""
        split = [x.shape[axis] > 1 and self.mesh[axis] > 1 for axis in (0, 1)]
        rows, cols = (
            [slice(at, at + 1) for at in range(count)] if is_split else [slice(None)]
            for is_split, count in zip(split, self.mesh, strict=True)
        )
        parts = [[self._part(x[r, c], r, c, narrow) for c in cols] for r in rows]
        if len(rows) == len(cols) == 1:
            return parts[0][0]

        def run(x: torch.Tensor) -> torch.Tensor:
            lines = [
                torch.cat([own(x[r, c]) for own, c in zip(line, cols, strict=True)], 1)
                for line, r in zip(parts, rows, strict=True)
            ]
            return torch.cat(lines)

        return run

    def _part(self, x: torch.Tensor, rows: slice, cols: slice, narrow: bool) -> Product:
        """Product with some chips' matrices as one: their columns lie side by side."""
        own = self._matrices[rows, cols]
        mesh = own.shape[:2]
        key = (rows.start, cols.start)
        if key not in self._joined:
            self._joined[key] = Weight(own.reshape(-1, own.shape[-1]))
        multiply = self._joined[key].product(x, narrow=narrow)
        if mesh == (1, 1):
            return multiply
        inner = range(2, x.dim() - 1)  # x's dims but the mesh's and K

        def run(x: torch.Tensor) -> torch.Tensor:
            out = multiply(x).unflatten(-1, (*mesh, -1))  # [xr, xc, ..., M, wr, wc, N]
            last = out.dim()
            out = out.permute(0, last - 3, 1, last - 2, *inner, last - 1)
            return out.flatten(0, 1).flatten(1, 2)  # an axis is of x or of the weight

        return run


def free_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Product of two tensors of any batch, in float32."""
    missing = x.dim() - w.dim()
    if missing > 0:
        w = w.reshape(*w.shape[:2], *(1,) * missing, *w.shape[2:])
    elif missing < 0:
        x = x.reshape(*x.shape[:2], *(1,) * -missing, *x.shape[2:])
    return torch.matmul(x.float(), w.float())
