"""Products of mesh-batched data, as few and as large as the mesh allows.

Along each mesh axis, chips that share a weight add rows to one product and chips that share
activations add columns; only along an axis where both differ is there a product per place.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F

from backends.emulator import native
from backends.emulator.fidelity import cut
from backends.emulator.kernels import FEW_ROWS, Product, Weight, is_fixed, narrow_type
from backends.emulator.tensor import Tensor
from backends.emulator.types import TILE

Place = tuple[int | None, int | None]  # row and column of chips; None: all, their product is one
_WORTHWHILE = 0.9  # rows are left out if no more than this share stays


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
        self._joined: dict[Hashable, tuple[Compact, tuple[int, ...]]] = {}

    def product(self, x: torch.Tensor, narrow: bool) -> Product:
        """The function that multiplies mesh-batched data of x's shape by this weight."""
        split = [x.shape[axis] > 1 and self.mesh[axis] > 1 for axis in (0, 1)]
        places = [
            (r, c)
            for r in (range(self.mesh[0]) if split[0] else [None])
            for c in (range(self.mesh[1]) if split[1] else [None])
        ]
        if self._is_small(x, places):
            return self._at_once(x, places, narrow)
        parts = [(place, self._at(x, place, narrow)) for place in places]
        if len(parts) == 1:
            return parts[0][1]
        width = self._matrices.shape[2]

        def run(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor | None = None
            for place, multiply in parts:
                found = multiply(_of(x, place))
                if out is None:
                    mesh = (max(a, b) for a, b in zip(x.shape, self.mesh, strict=False))
                    out = found.new_empty(*mesh, *x.shape[2:-1], width)
                _of(out, place).copy_(found)
            assert out is not None
            return out

        return run

    def _at(self, x: torch.Tensor, place: Place, narrow: bool) -> Product:
        """The best kernel for the activations of one place."""
        compact, own = self._compact([place])
        multiply = compact.product(_of(x, place), narrow)
        inner = tuple(range(2, x.dim() - 1))  # x's dims but the mesh's and K

        def run(x: torch.Tensor) -> torch.Tensor:
            out = compact.spread(multiply(x))
            if own == (1, 1):
                return out
            out = out.unflatten(-1, (*own, -1))  # [xr, xc, ..., M, wr, wc, N]
            last = out.dim()
            out = out.permute(0, last - 3, 1, last - 2, *inner, last - 1)
            return out.flatten(0, 1).flatten(1, 2)  # an axis is of x or of the weight

        return run

    def _is_small(self, x: torch.Tensor, places: Sequence[Place]) -> bool:
        """Whether one call for all places beats a call, the best there is, for each."""
        spread = x.shape[0] * x.shape[1]
        rows = x.numel() // (spread * x.shape[-1])
        return spread == len(places) > 1 and rows <= FEW_ROWS and not x.is_cuda

    def _at_once(self, x: torch.Tensor, places: Sequence[Place], narrow: bool) -> Product:
        """One batched product for all places but the last ones if their weights are zero."""
        compact, own = self._compact(places)
        kind = narrow_type(x, self._matrices) if narrow else torch.float32
        matrices = compact.matrices.mT.to(kind).contiguous()  # [places, K, N]
        count = len(matrices)
        mesh, inner = x.shape[:2], x.shape[2:-1]

        def run(x: torch.Tensor) -> torch.Tensor:
            rows = x.reshape(len(places), -1, x.shape[-1])[:count, :, : compact.depth]
            out = compact.spread(torch.bmm(rows.to(kind), matrices), len(places))
            if own == (1, 1):
                return out.view(*mesh, *inner, -1)
            # [xr, xc, M, wr, wc, N]: an axis is of x or of the weight
            out = out.view(*mesh, -1, *own, out.shape[-1] // (own[0] * own[1]))
            out = out.permute(0, 3, 1, 4, 2, 5)
            return out.reshape(mesh[0] * own[0], mesh[1] * own[1], *inner, -1)

        return run

    def _compact(self, places: Sequence[Place]) -> tuple[Compact, tuple[int, ...]]:
        """The matrices of places, and how many chips share each."""
        key = tuple(places)
        found = self._joined.get(key)
        if found is None:
            parts = [_of(self._matrices, place) for place in places]
            own = tuple(parts[0].shape[:2])
            joined = torch.stack([part.flatten(0, 2) for part in parts])
            found = self._joined[key] = Compact(joined, is_one_chip=self.mesh == (1, 1)), own
        return found


def _of(data: torch.Tensor, place: Place) -> torch.Tensor:
    """What a place has of mesh-batched data, mesh dims kept; None: all along that axis."""
    for axis, at in enumerate(place):
        if at is not None:
            data = data.narrow(axis, at, 1)
    return data


class Compact:
    """Matrices [places, N, K] without what padding and replication put into them.

    Columns at the end that are zero everywhere are left out, so are places at the end that are all
    zero, and of equal tiles of rows one is kept.
    """

    def __init__(self, matrices: torch.Tensor, *, is_one_chip: bool) -> None:
        self.depth = matrices.shape[2]
        self._index: torch.Tensor | None = None  # the kept tile that each tile of rows equals
        if not is_one_chip and matrices.dtype is torch.bfloat16 and matrices.shape[1] % TILE == 0:
            matrices = self._drop(matrices)
        self.matrices = matrices
        self._weight: Weight | None = None

    def _drop(self, matrices: torch.Tensor) -> torch.Tensor:
        used = (matrices != 0).any(1)  # [places, K]
        places, depth = used.nonzero().max(0).values.tolist() if bool(used.any()) else (0, 0)
        self.depth = depth + 1
        matrices = matrices[: places + 1, :, : self.depth]
        # a weighted sum of a tile's values tells it from others; equal sums are compared
        generator = torch.Generator().manual_seed(0)
        factors = torch.rand(TILE, self.depth, generator=generator).to(matrices.device)
        tiles = matrices.unflatten(1, (-1, TILE))  # [places, tiles, TILE, K]
        sums = torch.stack([(tile.float() * factors).sum((1, 2)) for tile in tiles.unbind(1)])
        known: dict[tuple[float, ...], int] = {}
        same = [known.setdefault(tuple(row), at) for at, row in enumerate(sums.tolist())]
        kept = sorted(known.values())
        if len(kept) <= _WORTHWHILE * len(same) and torch.equal(tiles[:, same], tiles):
            number = {at: place for place, at in enumerate(kept)}
            self._index = torch.tensor([number[at] for at in same], device=matrices.device)
            tiles = tiles[:, kept]
        return tiles.flatten(1, 2).contiguous()

    def product(self, x: torch.Tensor, narrow: bool) -> Product:
        """The fastest way to multiply x [..., K], all columns, by the only matrix."""
        if self._weight is None:
            self._weight = Weight(self.matrices[0])
        if self.depth == x.shape[-1]:
            return self._weight.product(x, narrow=narrow)
        multiply = self._weight.product(x[..., : self.depth].contiguous(), narrow=narrow)
        return lambda x: multiply(x[..., : self.depth].contiguous())

    def spread(self, out: torch.Tensor, places: int = 0) -> torch.Tensor:
        """Products of the kept rows [..., n] as those of all rows [..., N], and of all places."""
        index, missing = self._index, max(places - len(out), 0)
        if index is not None:
            if out.dtype is torch.bfloat16 and native.can_run(out, index):
                return native.spread_tiles(out, index, missing)
            out = out.unflatten(-1, (-1, TILE)).index_select(-2, index).flatten(-2)
        return F.pad(out, (0, 0, 0, 0, 0, missing)) if missing else out


def free_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Product of two tensors of any batch, in float32."""
    missing = x.dim() - w.dim()
    if missing > 0:
        w = w.reshape(*w.shape[:2], *(1,) * missing, *w.shape[2:])
    elif missing < 0:
        x = x.reshape(*x.shape[:2], *(1,) * -missing, *x.shape[2:])
    return torch.matmul(x.float(), w.float())
