"""Emulated tensors and traces in few words: values on and off, users on cores, captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import backends

backends.select("emulator")
ttnn: Any = backends.ttnn
# the multiplier sees all bits of bfloat16, sums are float32
EXACT = ttnn.WormholeComputeKernelConfig(
    math_fidelity=ttnn.MathFidelity.HiFi4, fp32_dest_acc_en=True
)
ROUNDED = {"rtol": 2**-7, "atol": 2**-8}  # one rounding to bfloat16 beside a float32 reference
ROWS = ttnn.ROW_MAJOR_LAYOUT
PER_USER = ttnn.L1_HEIGHT_SHARDED_MEMORY_CONFIG


def put(
    mesh: Any,
    values: torch.Tensor,
    dtype: Any = None,
    *,
    rows: bool = False,
    memory: Any = None,
    dims: tuple[int | None, int | None] | None = None,
) -> Any:
    """Values on a mesh: integers in rows as int32, others in tiles as bfloat16.

    `dims` are the tensor dims that the mesh's rows and columns cut; without, chips share values.
    """
    integers = not values.is_floating_point()
    mapper = None
    if dims is not None:
        mapper = ttnn.ShardTensor2dMesh(mesh, dims=dims, mesh_shape=tuple(mesh.shape))
    return ttnn.from_torch(
        values,
        dtype=dtype or (ttnn.int32 if integers else ttnn.bfloat16),
        layout=ROWS if rows or integers else ttnn.TILE_LAYOUT,
        device=mesh,
        memory_config=memory,
        mesh_mapper=mapper,
    )


def get(tensor: Any, chip: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Values of one chip."""
    data = tensor.data
    row, col = (min(at, size - 1) for at, size in zip(chip, data.shape[:2], strict=True))
    return data[row, col].float()


def per_user(mesh: Any, users: int, height: int, width: int) -> Any:
    """One user per core."""
    cores = ttnn.num_cores_to_corerangeset(
        users, mesh.compute_with_storage_grid_size(), row_wise=True
    )
    return ttnn.create_sharded_memory_config(
        (height, width),
        cores,
        ttnn.ShardStrategy.HEIGHT,
        use_height_and_width_as_shard_shape=True,
    )


def put_heads(mesh: Any, values: torch.Tensor, **options: Any) -> Any:
    """[1, B, n, W] with a core per user, n padded to whole tiles."""
    users, count, width = values.shape[1:]
    if "dims" in options:
        users //= tuple(mesh.shape)[1]
    memory = per_user(mesh, users, -(-count // 32) * 32, width)
    return put(mesh, values, memory=memory, **options)


def width_shards(cores: int, width: int) -> Any:
    """One tile row over `cores` cores of one row."""
    return ttnn.create_sharded_memory_config(
        (32, width // cores),
        ttnn.CoreGrid(x=cores, y=1),
        ttnn.ShardStrategy.WIDTH,
        use_height_and_width_as_shard_shape=True,
    )


def host(values: torch.Tensor, dtype: Any = None) -> Any:
    return ttnn.from_torch(values, dtype=dtype or ttnn.bfloat16, layout=ttnn.TILE_LAYOUT)


def capture(mesh: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    try:
        out = run()
    finally:
        ttnn.end_trace_capture(mesh, trace, cq_id=0)
    return trace, out
