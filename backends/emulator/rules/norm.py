"""What norms accept and where their results lie."""

from __future__ import annotations

from typing import Any

from backends.emulator.api.configs import LayerNormShardedMultiCoreProgramConfig, grid_xy
from backends.emulator.api.types import (
    TILE,
    CoreCoord,
    CoreRange,
    CoreRangeSet,
    DataType,
    Layout,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import fatal, require

_FLOATS = (DataType.FLOAT32, DataType.BFLOAT16, DataType.BFLOAT8_B)


def check_input(x: Tensor) -> None:
    """Tiles of a format that norms take."""
    require(
        x.layout is Layout.TILE,
        "ttnn::rms_norm does not support ROW_MAJOR input tensors. Use TILE layout.",
    )
    require(
        x.dtype in _FLOATS, f"Input tensor must be FLOAT32, BFLOAT16, or BFLOAT8_B, got: {x.dtype}"
    )


def check_weight(x: Tensor, weight: Tensor | None) -> None:
    """Tiles as wide as the input, or rows of 32 values."""
    if weight is None:
        return
    width = x.padded_shape[-1]
    if weight.layout is Layout.TILE:
        require(
            weight.padded_shape[-1] == width and weight.dims[-1] >= x.dims[-1],
            f"Input and gamma padded widths must match, got input: {x.dims[-1]} vs gamma: "
            f"{weight.dims[-1]}",
        )
        return
    require(
        weight.dims[-1] == TILE and weight.logical_volume() == width,
        "Gamma's last padded dim needs to equal tile width and gamma's volume needs to align with "
        f"last padded dim of input, got {weight.shape} for {x.padded_shape}: use [1, 1, "
        f"{width // TILE}, {TILE}]",
    )
    require(
        weight.dtype in (DataType.FLOAT32, DataType.BFLOAT16),
        f"Gamma tensor must be FLOAT32 or BFLOAT16, got: {weight.dtype}",
    )


def check_shards(x: Tensor, config: Any, stats: Tensor | None = None) -> None:
    """Shards and program config have to fit together; `stats` as well."""
    named = isinstance(config, LayerNormShardedMultiCoreProgramConfig)
    spec = x.memory_config().shard_spec
    if stats is not None:
        _check_stats_beside(x, stats, named)
    if spec is None:
        if named:
            fatal("a sharded program config needs a sharded input: bad optional access")
        return
    require(
        x.memory_config().memory_layout is not TensorMemoryLayout.HEIGHT_SHARDED,
        "Height sharded inputs are not supported.",
    )
    if named:
        _check_blocks(x, spec, config)


def _check_stats_beside(x: Tensor, stats: Tensor, named: bool) -> None:
    require(
        stats.padded_shape[2] == x.padded_shape[2],
        f"Stats and input dim2 must match, got stats: {stats.padded_shape[2]} vs input: "
        f"{x.padded_shape[2]}",
    )
    if not x.is_sharded():
        return
    require(stats.is_sharded(), "Stats must be sharded")
    cores = stats.memory_config().shard_spec.num_cores()
    require(cores == 1, f"Stats must be sharded with num_cores = 1, got: {cores}")
    require(named, "a norm of shards by statistics needs a LayerNormShardedMultiCoreProgramConfig")


def _check_blocks(
    x: Tensor, spec: ShardSpec, config: LayerNormShardedMultiCoreProgramConfig
) -> None:
    box, grid = spec.grid.bounding_box(), grid_xy(config.compute_with_storage_grid_size)
    require(
        box.columns <= grid[0] and box.rows <= grid[1],
        f"shard_spec.grid size {box.columns}x{box.rows} does not fit within program_config grid "
        f"{grid[0]}x{grid[1]}",
    )
    require(config.block_w % config.subblock_w == 0, "block_w must be divisible by subblock_w.")
    tiles = x.padded_shape[-1] // TILE
    rows = x.volume() // x.padded_shape[-1] // TILE
    one_row_of_cores = config.block_h == rows
    cores = spec.num_cores() if one_row_of_cores else box.rows
    own = -(-tiles // cores)
    name = "num_cores" if one_row_of_cores else "num_cores_c"
    require(
        config.block_w == own,
        f"block_w ({config.block_w}) must equal to K (in tiles) / {name} ({own})",
    )


def output_memory(x: Tensor, asked: MemoryConfig | None) -> MemoryConfig:
    """The input's memory unless told otherwise; shards go to shards, unnamed ones to the same."""
    own = x.memory_config()
    if asked is None:
        return own
    if own.is_sharded():
        require(asked.is_sharded(), "Sharded inputs require sharded outputs.")
        if asked.shard_spec is None:
            return MemoryConfig(asked.memory_layout, asked.buffer_type, own.shard_spec)
    return asked


def check_stats(x: Tensor, kernel: Any, config: Any) -> None:
    """What the statistics of a distributed norm are taken of."""
    require(x.layout is Layout.TILE, "Only tilized inputs supported.")
    require(
        x.dtype in _FLOATS, f"Input tensor must be FLOAT32, BFLOAT16, or BFLOAT8_B, got: {x.dtype}"
    )
    require(
        x.dtype is not DataType.FLOAT32 or (kernel is not None and kernel.fp32_dest_acc_en),
        "rms_norm_pre_all_gather with Float32 input requires fp32_dest_acc_en=true in the compute "
        "kernel config",
    )
    named = isinstance(config, LayerNormShardedMultiCoreProgramConfig)
    require(
        named or not x.is_sharded(),
        "statistics of shards need a LayerNormShardedMultiCoreProgramConfig",
    )
    check_shards(x, config)


def check_exchange(name: str, stats: Tensor | None, kernel: Any) -> None:
    """Statistics travel in a tensor of the format in which they are summed."""
    require(stats is not None, f"{name} needs a stats tensor")
    assert stats is not None
    wide = kernel is not None and kernel.fp32_dest_acc_en
    wanted = DataType.FLOAT32 if wide else DataType.BFLOAT16
    require(
        stats.dtype is wanted,
        f"{name}: stats tensor dtype ({stats.dtype}) must match the compute accumulation format, "
        f"{wanted}",
    )


def stats_memory(x: Tensor, asked: MemoryConfig | None) -> MemoryConfig:
    """Statistics of shards are summed up on the first core."""
    memory, spec = asked or x.memory_config(), x.memory_config().shard_spec
    if spec is None:
        return memory
    first = CoreRangeSet([CoreRange(CoreCoord(0, 0), CoreCoord(0, 0))])
    shard = ShardSpec(first, (spec.shape[0], TILE))
    return MemoryConfig(memory.memory_layout, memory.buffer_type, shard)
