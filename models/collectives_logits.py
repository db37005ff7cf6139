"""What keeps padded columns of the vocabulary from being drawn, whole or by shares of a sum.

Read next: collectives.py adds the shares, layers/sampler.py all else.
"""

from __future__ import annotations

from typing import Any

import torch

from backends import ttnn
from models.collectives_kept import KeptResults
from models.sharding import TILE, Sharding


def padding_mask(sharding: Sharding) -> torch.Tensor:
    """What is added to all columns [V]: nothing to those of the vocabulary."""
    mask = torch.zeros(sharding.vocab)
    mask[sharding.config.vocab_size :] = -1e9
    return mask


def padding_shares(sharding: Sharding, mesh: Any) -> Any:
    """That mask [1, 1, 1, V'], as chips of a 2D mesh have a sum over its columns before they
    gather it; None where nothing is padded, or the sum does not part into whole tiles.
    """
    rows, cols = sharding.rows, sharding.cols
    width, rest = divmod(sharding.local_vocab, cols * TILE)
    if rest or sharding.vocab == sharding.config.vocab_size:
        return None
    shares = padding_mask(sharding).view(rows, cols, width * TILE).transpose(0, 1)
    return ttnn.from_torch(
        shares.reshape(cols, 1, 1, -1).contiguous(),
        dtype=ttnn.bfloat16,
        layout=ttnn.TILE_LAYOUT,
        device=mesh,
        memory_config=ttnn.L1_MEMORY_CONFIG,
        mesh_mapper=ttnn.ShardTensor2dMesh(mesh, dims=(3, 0), mesh_shape=(rows, cols)),
    )


def step_results(sharding: Sharding, users: int, mesh: Any) -> KeptResults:
    """Places of a step's summed logits, made before prefills are captured, whose replays would
    write there else, and before readers take the upper part of L1; the sampler adds its own.
    """
    results = KeptResults(("LM_HEAD share", "candidates whole"))
    if sharding.local_vocab % (sharding.cols * TILE) == 0:
        for name, ways in (("parts", 1), ("share", sharding.cols), ("whole", 1)):
            shape = [1, 1, users, sharding.local_vocab // ways]
            results.place(f"LM_HEAD {name}", shape, ttnn.bfloat16, mesh)
    return results


def in_dram(logits: Any) -> Any:
    """Where they go, if they are not there yet."""
    if not logits.is_sharded():
        return logits
    return ttnn.to_memory_config(logits, ttnn.DRAM_MEMORY_CONFIG)
