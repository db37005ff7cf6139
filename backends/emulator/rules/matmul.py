"""What TT-NN asks of a matmul's operands, and where it puts the result."""

from __future__ import annotations

import math
from typing import Any

from backends.emulator.api.configs import (
    MatmulMultiCoreReuseMultiCast1DProgramConfig,
    MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig,
    MatmulMultiCoreReuseMultiCastProgramConfig,
    grid_xy,
)
from backends.emulator.api.types import (
    DRAM_MEMORY_CONFIG,
    TILE,
    CoreCoord,
    Layout,
    MemoryConfig,
    ShardSpec,
    TensorMemoryLayout,
    core_rectangle,
    num_cores_to_corerangeset,
)
from backends.emulator.chip.tensor import Tensor
from backends.emulator.launch import fatal, require


def check_operands(a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    """Floats in tiles."""
    require(a.layout is Layout.TILE and b.layout is Layout.TILE, "Inputs to matmul must be tilized")
    for name, tensor in (("A", a), ("B", b)):
        if not tensor.dtype.is_float:
            fatal(f"Unsupported data format for input {name}: DataType::{tensor.dtype.name}")
    if bias is not None and bias.dims[-1] != b.dims[-1]:
        fatal(
            "Broadcasting rule violation at dimension index -1 "
            f"(output rank {len(a.dims)}), dim a: {b.dims[-1]}, dim b: {bias.dims[-1]}"
        )


def check_pair(a: Tensor, b: Tensor, c: Tensor, chips: int) -> tuple[tuple[int, ...], int]:
    """Two weights of one shape, whose products part into whole tiles; as output_shape."""
    for weight in (b, c):
        check_operands(a, weight, None)
    require(c.dims == b.dims, f"weights differ: {b.shape} and {c.shape}")
    shape, inner = output_shape(a, b, transpose_a=False, transpose_b=False)
    require(shape[-1] % (TILE * chips) == 0, f"a width of {shape[-1]} leaves parts not whole")
    return shape, inner


def output_shape(
    a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool
) -> tuple[tuple[int, ...], int]:
    """Shape of the product, and the length that is summed over."""
    require(len(a.dims) > 1 and len(b.dims) > 1, "matmul of vectors is not emulated")
    rows, k = a.dims[-2:][:: -1 if transpose_a else 1]
    height, n = b.dims[-2:][:: -1 if transpose_b else 1]
    if k != height:
        fatal(
            "The width of the first tensor must be equal to the height of the second tensor. "
            f"Mismatch: width={k} height={height}"
        )
    rank = max(len(a.dims), len(b.dims)) - 2
    batch_a = (1,) * (rank + 2 - len(a.dims)) + a.dims[:-2]
    batch_b = (1,) * (rank + 2 - len(b.dims)) + b.dims[:-2]
    if batch_a != batch_b and math.prod(batch_a) != 1 and math.prod(batch_b) != 1:
        fatal(
            "bmm (non-bcast matmul) expects input tensors of shapes BCMK*BCKN=BCMN, got batches "
            f"{list(batch_a)} and {list(batch_b)}"
        )
    batch = batch_b if math.prod(batch_a) == 1 else batch_a
    return (*batch, rows, n), k


def output_layout(name: str, config: Any) -> Layout:
    """Tiles, unless the program of a matmul untilizes what it made; linear does not hear of it."""
    in_rows = name == "matmul" and getattr(config, "untilize_out", False)
    return Layout.ROW_MAJOR if in_rows else Layout.TILE


def output_memory(
    a: Tensor,
    b: Tensor,
    shape: tuple[int, ...],
    k: int,
    config: Any,
    wanted: MemoryConfig | None,
) -> MemoryConfig:
    """Memory of the result; a sharded one's shards follow from the program config."""
    memory = wanted or DRAM_MEMORY_CONFIG
    if isinstance(config, MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig):
        return _dram_sharded(a, b, shape, config, memory)
    if isinstance(config, MatmulMultiCoreReuseMultiCastProgramConfig):
        turned = config.transpose_mcast and b.is_sharded()
        require(not turned, "Transpose MCAST not supported when input B is sharded")
        return _grid(a, shape, k, config, memory)
    if isinstance(config, MatmulMultiCoreReuseMultiCast1DProgramConfig):
        if config.gather_in0 and b.is_sharded():
            _check_dealt(a, b, config)
        return _line(a, shape, k, config, memory)
    require(
        not (b.is_sharded() and (b.in_dram() or a.is_sharded())),
        "Input tensor B must have INTERLEAVED memory layout, got: "
        f"TensorMemoryLayout::{b.memory_config().memory_layout.name}",
    )
    return _chosen(a, shape, memory) if memory.is_sharded() else memory


def _width_sharded(
    memory: MemoryConfig, cores: int, grid: CoreCoord, height: int, width: int
) -> MemoryConfig:
    """One shard of height x width tiles on each of the first cores of a grid."""
    placed = num_cores_to_corerangeset(cores, grid, row_wise=True)
    spec = ShardSpec(placed, (height * TILE, width * TILE))
    return MemoryConfig(memory.memory_layout, memory.buffer_type, spec)


def _tiles(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Batch, rows and columns in whole tiles."""
    return math.prod(shape[:-2]), -(-shape[-2] // TILE), -(-shape[-1] // TILE)


def _dram_sharded(
    a: Tensor,
    b: Tensor,
    shape: tuple[int, ...],
    config: MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig,
    memory: MemoryConfig,
) -> MemoryConfig:
    """One tile row of activations in L1 shards, weights in slices per DRAM bank."""
    name = type(config).__name__
    require(a.is_sharded(), f"{name}: Input A must be sharded, got: INTERLEAVED")
    layout = b.memory_config().memory_layout
    require(
        layout is TensorMemoryLayout.WIDTH_SHARDED,
        f"{name}: Input B memory layout must be WIDTH_SHARDED, "
        f"got: TensorMemoryLayout::{layout.name}",
    )
    require(b.in_dram(), f"{name}: Input B must be in DRAM")
    require(
        memory.is_sharded(),
        f"{name}: Output memory config must be sharded for DRAM sharded program config",
    )
    batch, rows, columns = _tiles(shape)
    require(batch * rows == 1, f"{name}: currently only support in0 tensor height of tile height")
    cores = -(-columns // config.per_core_N)
    grid = a.device().compute_with_storage_grid_size()  # type: ignore[union-attr]
    return _width_sharded(memory, cores, grid, config.per_core_M, config.per_core_N)


def _grid(
    a: Tensor,
    shape: tuple[int, ...],
    k: int,
    config: MatmulMultiCoreReuseMultiCastProgramConfig,
    memory: MemoryConfig,
) -> MemoryConfig:
    name = type(config).__name__
    grid_x, grid_y = _checked_grid(a, k, config)
    layout = a.memory_config().memory_layout
    require(
        layout in (TensorMemoryLayout.INTERLEAVED, TensorMemoryLayout.BLOCK_SHARDED),
        f"{name}: Unsupported memory layout TensorMemoryLayout::{layout.name}.",
    )
    batch, rows, columns = _tiles(shape)
    blocks_y = -(-rows * (batch if config.fuse_batch else 1) // config.per_core_M)
    blocks_x = -(-columns // config.per_core_N)
    if config.transpose_mcast:
        blocks_x, blocks_y = blocks_y, blocks_x
    require(
        blocks_y <= grid_y,
        f"{name}: Num output blocks along y ({blocks_y}) must be smaller than or equal to the "
        f"number of rows in compute grid ({grid_y})!",
    )
    require(
        blocks_x <= grid_x,
        f"{name}: Num output blocks along x ({blocks_x}) must be smaller than or equal to the "
        f"number of columns in compute grid ({grid_x})!",
    )
    if not memory.is_sharded():
        return memory
    spec = ShardSpec(
        core_rectangle(blocks_x, blocks_y), (config.per_core_M * TILE, config.per_core_N * TILE)
    )
    return MemoryConfig(memory.memory_layout, memory.buffer_type, spec)


def _line(
    a: Tensor,
    shape: tuple[int, ...],
    k: int,
    config: MatmulMultiCoreReuseMultiCast1DProgramConfig,
    memory: MemoryConfig,
) -> MemoryConfig:
    name = type(config).__name__
    grid_x, grid_y = _checked_grid(a, k, config)
    batch, rows, columns = _tiles(shape)
    if config.gather_in0:
        return _ring(a, columns, config, memory)
    down = -(-rows * (batch if config.fuse_batch else 1) // config.per_core_M)
    blocks = down * -(-columns // config.per_core_N)
    if memory.is_sharded():
        return _width_sharded(
            memory, blocks, CoreCoord(grid_x, grid_y), config.per_core_M, config.per_core_N
        )
    require(
        blocks <= grid_x * grid_y,
        f"{name}: Number of blocks exceeds number of cores: {blocks} blocks > "
        f"{grid_x * grid_y} cores",
    )
    return memory


def _ring(
    a: Tensor,
    columns: int,
    config: MatmulMultiCoreReuseMultiCast1DProgramConfig,
    memory: MemoryConfig,
) -> MemoryConfig:
    """Blocks of in0 go round the cores that hold it; each has its columns of the result."""
    own, result = a.memory_config().shard_spec, memory.shard_spec
    require(own is not None and result is not None, "gather_in0 needs sharded input and output")
    assert own is not None and result is not None
    cores = own.num_cores()
    require(
        cores == result.num_cores(),
        f"Input and output must be sharded on the same cores, got {cores} and {result.num_cores()}",
    )
    require(
        config.per_core_N * cores >= columns,
        f"{cores} cores of {config.per_core_N} tiles hold not {columns} tiles",
    )
    return memory


def _check_dealt(
    a: Tensor, b: Tensor, config: MatmulMultiCoreReuseMultiCast1DProgramConfig
) -> None:
    """Cores beside a bank read their columns one after the other; TT-NN reads what lies there."""
    own, dealt = a.memory_config().shard_spec, b.memory_config().shard_spec
    assert own is not None and dealt is not None
    each = own.num_cores() // dealt.num_cores() * config.per_core_N
    require(
        dealt.shape[1] == each * TILE,
        f"a bank holds {dealt.shape[1] // TILE} tiles of columns, its cores multiply {each}",
    )


def _checked_grid(a: Tensor, k: int, config: Any) -> tuple[int, int]:
    """The program's grid, if the device has it and blocks of K come out even."""
    name = type(config).__name__
    grid_x, grid_y = grid_xy(config.compute_with_storage_grid_size)
    have = a.device().compute_with_storage_grid_size()  # type: ignore[union-attr]
    require(
        grid_x <= have.x and grid_y <= have.y,
        f"{name}: compute_with_storage_grid_size ({grid_x}, {grid_y}) must fit within device grid "
        f"({have.x}, {have.y})",
    )
    k_tiles = -(-k // TILE)
    require(
        k_tiles % config.in0_block_w == 0,
        f"{name}: Kt ({k_tiles}) must be divisible by in0_block_w ({config.in0_block_w})",
    )
    return grid_x, grid_y


def _chosen(a: Tensor, shape: tuple[int, ...], memory: MemoryConfig) -> MemoryConfig:
    """Shards of a program that TT-NN chooses itself: columns dealt out to all cores."""
    own = a.memory_config()
    require(
        not a.is_sharded() or own.memory_layout is memory.memory_layout,
        f"Input A and output memory layouts must match, got input: TensorMemoryLayout::"
        f"{own.memory_layout.name} vs output: TensorMemoryLayout::{memory.memory_layout.name}",
    )
    require(
        memory.memory_layout is TensorMemoryLayout.WIDTH_SHARDED,
        f"a {memory.memory_layout.name} matmul output needs a program_config here",
    )
    _, rows, columns = _tiles(shape)
    grid = a.device().compute_with_storage_grid_size()  # type: ignore[union-attr]
    cores = grid.x * grid.y
    if a.is_sharded() and own.shard_spec is not None:
        box = own.shard_spec.grid.bounding_box()
        grid, cores = CoreCoord(box.columns, box.rows), own.shard_spec.num_cores()
    width = -(-columns // cores)
    return _width_sharded(memory, -(-columns // width), grid, rows, width)
