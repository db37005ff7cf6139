"""Sampling on the device: candidates of every chip, gathered, drawn per user.

Each chip offers the 32 best tokens of its share of the vocabulary; the draw (temperature, top-k,
top-p per user) happens among those. k = 1 is greedy. A nucleus wider than 32 tokens is cut there.
Finding candidates takes the longer the wider a row is, up to 32 rows: few users fold their rows.
Rows are searched in powers of two, by many cores (models/sharding.py).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from backends import ttnn
from models.collectives_logits import padding_mask
from models.plans.matmul import Kwargs
from models.sharding import LEAST_SEARCHED, TILE, Sharding, searched_parts

CANDIDATES = 32
MOST_COLUMNS = 65_536  # wider rows do not fit the top-k kernel; older software halved them
MOST_FOUND = 8  # tiles of candidates of all chips: the draw's time grows with them


@dataclass(frozen=True)
class SamplingInputs:
    """Device tensors [B]: k (uint32), p and 1/temperature (bfloat16), each user's seed (uint32).

    `seeds` None is for users who all take the likeliest token.
    """

    k: Any
    p: Any
    inverse_temperature: Any
    seeds: Any = None


class DeviceSampler:
    """Draws one token per user from logits split over chips."""

    def __init__(
        self, mesh: Any, sharding: Sharding, batch: int, *, fold: bool = True, ccl: Any = None
    ) -> None:
        """`fold` False is for op lists of software that did not.

        `ccl` may have a gather of its own for what all shares of the vocabulary found, and may
        mask their padding where it sums them.
        """
        self.gather = ccl.gather_candidates if ccl and fold else None  # None: a plain one
        self.axis = sharding.mesh_axes["vocab"]
        self.ways = sharding.ways("vocab")
        vocab, local = sharding.config.vocab_size, sharding.local_vocab
        self.folds = self._folds(local, batch) if fold else 1
        self.found = ttnn.L1_MEMORY_CONFIG if fold else ttnn.DRAM_MEMORY_CONFIG
        width = local // self.folds
        parts = searched_parts(width) if fold else _halves(width)
        ends = list(itertools.accumulate(parts))
        self.bounds = list(zip([0, *ends[:-1]], ends, strict=True))
        starts = [row * width + first for row in range(self.ways * self.folds)
                  for first, _ in self.bounds]  # fmt: skip
        offsets = torch.tensor(starts, dtype=torch.int32).repeat_interleave(CANDIDATES)
        dims: list[int | None] = [None, None]
        if self.axis is not None:
            dims[self.axis] = 3
        split = ttnn.ShardTensor2dMesh(
            mesh, dims=tuple(dims), mesh_shape=(sharding.rows, sharding.cols)
        )
        place = {"layout": ttnn.TILE_LAYOUT, "device": mesh, "mesh_mapper": split}
        self.offsets = ttnn.from_torch(
            offsets.expand(1, 1, batch, -1).contiguous(),
            dtype=ttnn.int32,
            memory_config=self.found,
            **place,
        )
        if self.gather:  # into places that are made now, see step_results
            for dtype in (ttnn.bfloat16, ttnn.int32):
                ccl.last.place("candidates whole", [1, 1, batch, len(offsets)], dtype, mesh)
        self.users = ttnn.from_torch(
            torch.arange(batch, dtype=torch.int32),
            dtype=ttnn.uint32,
            layout=ttnn.ROW_MAJOR_LAYOUT,
            device=mesh,
            mesh_mapper=ttnn.ReplicateTensorToMesh(mesh),
        )
        self.filler = self._filler(len(starts), batch, mesh)
        masked = not fold or (ccl is not None and ccl.padding is not None)
        self.masks = [None] * len(self.bounds) if masked else self._masks(sharding, batch, place)
        self.padding_mask = None  # of whole rows, as older software added it
        if not fold and sharding.vocab > vocab:
            self.padding_mask = ttnn.from_torch(
                padding_mask(sharding)[None, None, None], dtype=ttnn.bfloat16, **place
            )

    def _filler(self, tiles: int, batch: int, mesh: Any) -> tuple[Any, Any] | None:
        """Candidates that nobody draws: the draw takes a power of two of tiles of them."""
        missing = (1 << (tiles - 1).bit_length()) - tiles
        if not missing:
            return None
        shape = (1, 1, batch, missing * CANDIDATES)
        mapper = ttnn.ReplicateTensorToMesh(mesh)
        whole = {"layout": ttnn.TILE_LAYOUT, "device": mesh, "mesh_mapper": mapper}
        return (
            ttnn.from_torch(torch.full(shape, -1e9), dtype=ttnn.bfloat16, **whole),
            ttnn.from_torch(torch.zeros(shape, dtype=torch.int32), dtype=ttnn.int32, **whole),
        )

    def _masks(self, sharding: Sharding, batch: int, place: Kwargs) -> list[Any]:
        """What keeps padded columns of each part from being drawn; None where no chip has any."""
        rows = padding_mask(sharding).view(self.ways, self.folds, -1)
        masks: list[Any] = []
        for first, last in self.bounds:
            part = rows[..., first:last].transpose(0, 1).flatten(1)  # chips side by side
            if self.folds > 1:
                part = part.repeat(batch, 1)
            empty = not part.any()
            masks.append(
                None if empty else ttnn.from_torch(part[None, None], dtype=ttnn.bfloat16, **place)
            )
        return masks

    def _folds(self, local: int, batch: int) -> int:
        """Parts of equal whole tiles that a user's row is cut into, to lie below each other."""
        folds = 1
        while 2 * folds * batch <= TILE and local % (2 * folds * LEAST_SEARCHED) == 0:
            tiles = 2 * folds * self.ways * len(searched_parts(local // (2 * folds)))
            if tiles > MOST_FOUND:
                break
            folds *= 2
        return folds

    def __call__(self, logits_11BV: Any, inputs: SamplingInputs, tokens: Any) -> Any:
        """Write the drawn tokens into `tokens` (uint32 [1, 1, 1, B]) and return it."""
        if self.padding_mask is not None:
            logits_11BV = ttnn.add(
                logits_11BV, self.padding_mask, memory_config=ttnn.DRAM_MEMORY_CONFIG
            )
        values, indices = self._candidates(logits_11BV)
        indices = ttnn.add(indices, self.offsets, dtype=ttnn.int32)
        if self.ways > 1:
            values, indices = map(self.gather or self._gather, (values, indices))
        if self.filler is not None:
            values, indices = (
                ttnn.concat([found, more], dim=3)
                for found, more in zip((values, indices), self.filler, strict=True)
            )
        indices = ttnn.untilize(indices, use_multicore=True)
        if inputs.seeds is not None:
            # right before the draw: ops in between would run down the cores' random numbers
            ttnn.manual_seed(inputs.seeds, user_ids=self.users)
        return ttnn.sampling(
            values,
            indices,
            k=inputs.k,
            p=inputs.p,
            temp=inputs.inverse_temperature,
            output_tensor=tokens,
        )

    def _gather(self, x: Any) -> Any:
        memory = ttnn.DRAM_MEMORY_CONFIG
        return ttnn.all_gather(x, dim=3, cluster_axis=self.axis, memory_config=memory)

    def _candidates(self, logits_11BV: Any) -> tuple[Any, Any]:
        rows = self.folds * logits_11BV.shape[2]
        if self.folds > 1:
            width = logits_11BV.shape[3] // self.folds
            logits_11BV = ttnn.reshape(logits_11BV, (1, 1, rows, width))
        found = []
        for (first, last), mask in zip(self.bounds, self.masks, strict=True):
            part = logits_11BV
            if len(self.bounds) > 1:
                part = ttnn.slice(logits_11BV, [0, 0, 0, first], [1, 1, rows, last])
            if mask is not None:
                part = ttnn.add(part, mask, memory_config=ttnn.DRAM_MEMORY_CONFIG)
            values, indices = ttnn.topk(part, k=CANDIDATES, dim=-1, memory_config=self.found)
            found.append((values, ttnn.typecast(indices, ttnn.int32)))
        values, indices = (
            parts[0]
            if len(parts) == 1
            else ttnn.concat(list(parts), dim=3, memory_config=self.found)
            for parts in zip(*found, strict=True)
        )
        return self._unfolded(values), self._unfolded(indices)

    def _unfolded(self, found: Any) -> Any:
        """A user's candidates side by side again."""
        if self.folds == 1:
            return found
        rows, width = found.shape[2], found.shape[3]
        return ttnn.reshape(found, (1, 1, rows // self.folds, width * self.folds))


def _halves(width: int) -> list[int]:
    """A row in as few equal parts as the kernel takes, as older software cut it."""
    parts = 1
    while parts * MOST_COLUMNS < width:
        parts *= 2
    ends = [width // TILE * i // parts * TILE for i in range(parts + 1)]
    return [end - first for first, end in itertools.pairwise(ends)]
