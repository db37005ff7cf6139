"""Calls whose outcome is a placement or a refusal, not values; they run on wheel and emulator.

A case is a function of (t, make): t is ttnn, make(shape, ...) an empty tensor on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.ops.maker import Maker

Case = Callable[[Any, Maker], Any]


def _stream(t: Any, block: int, columns: int) -> Any:
    return t.MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig(
        in0_block_w=block, per_core_M=1, per_core_N=columns, fused_activation=None
    )


def _grid(t: Any, columns: int, rows: int, m: int, n: int, *, fuse: bool = True, block: int = 2, turned: bool = False) -> Any:  # fmt: skip  # noqa: E501
    return t.MatmulMultiCoreReuseMultiCastProgramConfig(
        compute_with_storage_grid_size=(columns, rows),
        in0_block_w=block,
        out_subblock_h=1,
        out_subblock_w=1,
        per_core_M=m,
        per_core_N=n,
        transpose_mcast=turned,
        fused_activation=None,
        fuse_batch=fuse,
    )


def _line(t: Any, columns: int, rows: int, n: int) -> Any:
    return t.MatmulMultiCoreReuseMultiCast1DProgramConfig(
        compute_with_storage_grid_size=(columns, rows),
        in0_block_w=1,
        out_subblock_h=1,
        out_subblock_w=1,
        per_core_M=1,
        per_core_N=n,
        fuse_batch=True,
        fused_activation=None,
        mcast_in0=True,
    )


def _streamed(n: int, columns: int, dtype: str = "bfloat16", users: int = 32) -> Case:
    return lambda t, make: t.linear(
        make(1, 1, users, 576, memory=make.shards(32, 32, 6, 3)),
        make(1, 1, 576, n, dtype="bfloat8_b", memory=make.banks(576, n)),
        program_config=_stream(t, 1, columns),
        memory_config=t.L1_WIDTH_SHARDED_MEMORY_CONFIG,
        dtype=getattr(t, dtype),
    )


def _streamed_matmuls() -> Iterator[tuple[str, Case]]:
    yield "DRAM-sharded", _streamed(960, 2)
    yield "DRAM-sharded, wider blocks", _streamed(960, 4, "bfloat8_b")
    yield "DRAM-sharded, one core", _streamed(960, 30)
    yield "DRAM-sharded, 8 users", _streamed(960, 3, users=8)
    yield (
        "DRAM-sharded without DRAM shards",
        lambda t, make: t.linear(
            make(1, 1, 32, 576, memory=make.shards(32, 32, 6, 3)),
            make(1, 1, 576, 960),
            program_config=_stream(t, 1, 2),
            memory_config=t.L1_WIDTH_SHARDED_MEMORY_CONFIG,
        ),
    )
    yield (
        "DRAM-sharded of an interleaved input",
        lambda t, make: t.linear(
            make(1, 1, 32, 576),
            make(1, 1, 576, 960, memory=make.banks(576, 960)),
            program_config=_stream(t, 1, 2),
            memory_config=t.L1_WIDTH_SHARDED_MEMORY_CONFIG,
        ),
    )
    yield (
        "DRAM-sharded to interleaved",
        lambda t, make: t.linear(
            make(1, 1, 32, 576, memory=make.shards(32, 32, 6, 3)),
            make(1, 1, 576, 960, memory=make.banks(576, 960)),
            program_config=_stream(t, 1, 2),
        ),
    )


def _in_grid(config: Callable[[Any], Any], memory: str = "DRAM_MEMORY_CONFIG", batch: int = 1, banks: bool = False) -> Case:  # fmt: skip  # noqa: E501
    return lambda t, make: t.linear(
        make(1, batch, 256, 576),
        make(1, 1, 576, 960, dtype="bfloat8_b", memory=make.banks(576, 960) if banks else None),
        program_config=config(t),
        memory_config=getattr(t, memory),
        dtype=t.bfloat8_b,
    )


def _in_line(n: int) -> Case:
    return lambda t, make: t.linear(
        make(1, 1, 32, 576, memory=make.shards(32, 32, 6, 3)),
        make(1, 1, 576, 960),
        program_config=_line(t, 6, 5, n),
        memory_config=t.L1_WIDTH_SHARDED_MEMORY_CONFIG,
    )


def _grid_matmuls() -> Iterator[tuple[str, Case]]:
    yield "2D", _in_grid(lambda t: _grid(t, 8, 8, 1, 4))
    yield "2D to blocks", _in_grid(lambda t: _grid(t, 8, 8, 1, 4), "L1_BLOCK_SHARDED_MEMORY_CONFIG")
    yield "2D per batch", _in_grid(lambda t: _grid(t, 8, 8, 1, 4, fuse=False), batch=2)
    yield "2D with too few rows", _in_grid(lambda t: _grid(t, 8, 4, 1, 4))
    yield "2D with too few columns", _in_grid(lambda t: _grid(t, 8, 8, 1, 2))
    yield "2D with blocks that do not divide K", _in_grid(lambda t: _grid(t, 8, 8, 1, 4, block=5))
    yield "2D turned", _in_grid(lambda t: _grid(t, 4, 8, 2, 4, turned=True))
    yield "2D turned per batch", _in_grid(lambda t: _grid(t, 4, 8, 2, 4, turned=True, fuse=False), batch=2)  # fmt: skip  # noqa: E501
    yield "2D turned with too few columns", _in_grid(lambda t: _grid(t, 3, 8, 2, 4, turned=True))
    yield "2D turned, weight in banks", _in_grid(lambda t: _grid(t, 4, 8, 2, 4, turned=True), banks=True)  # fmt: skip  # noqa: E501
    yield "2D beyond the device", _in_grid(lambda t: _grid(t, 9, 8, 1, 4))
    yield "1D", _in_line(1)
    yield "1D, two tiles per core", _in_line(2)


def _plain(x: tuple[int, ...], w: tuple[int, ...], memory: str = "DRAM_MEMORY_CONFIG", **options: Any) -> Case:  # fmt: skip  # noqa: E501
    return lambda t, make: t.matmul(make(*x, **options), make(*w), memory_config=getattr(t, memory))


def _plain_matmuls() -> Iterator[tuple[str, Case]]:
    yield "matmul", _plain((1, 1, 100, 64), (1, 1, 64, 96))
    yield "matmul to L1", _plain((1, 1, 8, 32), (1, 1, 32, 960), "L1_MEMORY_CONFIG")
    yield "matmul to shards", _plain((1, 1, 32, 64), (1, 1, 64, 960), "L1_WIDTH_SHARDED_MEMORY_CONFIG")  # fmt: skip  # noqa: E501
    yield "matmul of batches", _plain((2, 3, 32, 64), (2, 3, 64, 96))
    yield "matmul of one by a batch", _plain((1, 1, 32, 64), (2, 3, 64, 96))
    yield "matmul of unequal batches", _plain((2, 3, 32, 64), (3, 2, 64, 96))
    yield "matmul of unequal widths", _plain((1, 1, 32, 64), (1, 1, 96, 64))
    yield "matmul of rows", _plain((1, 1, 32, 64), (1, 1, 64, 96), rows=True)
    yield "matmul of integers", _plain((1, 1, 32, 64), (1, 1, 64, 96), dtype="int32")


def _elementwise() -> Iterator[tuple[str, Case]]:
    def sharded(make: Maker, columns: int = 6) -> Any:
        return make(1, 1, 32, 576, memory=make.shards(32, 576 // 3 // columns, columns, 3))

    yield "add", lambda t, make: t.add(make(1, 1, 32, 64), make(1, 1, 1, 64))
    yield "add a sharded operand", lambda t, make: t.add(make(1, 1, 32, 576), sharded(make))
    yield "add two shardings", lambda t, make: t.add(sharded(make, 3), sharded(make, 6))
    yield (
        "add to other shards",
        lambda t, make: t.add(
            sharded(make), sharded(make), memory_config=make.shards(32, 64, 3, 3)
        ),
    )
    yield (
        "multiply to another type and memory",
        lambda t, make: t.mul(
            make(1, 1, 32, 64),
            make(1, 1, 32, 64),
            input_tensor_a_activations=[t.UnaryOpType.SILU],
            dtype=t.bfloat8_b,
            memory_config=t.L1_MEMORY_CONFIG,
        ),
    )
    yield "add of mixed floats", lambda t, make: t.add(make(32, 64, dtype="float32"), make(32, 64))
    yield (
        "add of integers and floats",
        lambda t, make: t.add(make(32, 64), make(32, 64, dtype="int32")),
    )
    yield (
        "add of two kinds of integers",
        lambda t, make: t.add(make(32, 64, dtype="int32"), make(32, 64, dtype="uint32")),
    )
    yield "add of unequal shapes", lambda t, make: t.add(make(1, 1, 32, 64), make(1, 1, 32, 96))
    yield "silu", lambda t, make: t.silu(sharded(make))
    yield "silu of integers", lambda t, make: t.silu(make(32, 64, dtype="int32"))
    for name in ("bfloat8_b", "float32", "int32", "uint16"):
        yield (
            f"typecast to {name}",
            lambda t, make, name=name: t.typecast(make(1, 1, 32, 64), getattr(t, name)),
        )
    yield (
        "typecast of rows to blocks",
        lambda t, make: t.typecast(make(32, 64, rows=True), t.bfloat8_b),
    )
    yield (
        "typecast out of shards",
        lambda t, make: t.typecast(sharded(make), t.bfloat8_b, memory_config=t.DRAM_MEMORY_CONFIG),
    )
    for name, rows in (("int32", True), ("uint32", True), ("bfloat16", True), ("int32", False)):
        yield (
            f"plus_one of {name} in {'rows' if rows else 'tiles'}",
            lambda t, make, name=name, rows=rows: t.plus_one(make(1, 32, dtype=name, rows=rows)),
        )


def _moves() -> Iterator[tuple[str, Case]]:
    def shards(make: Maker) -> Any:
        return make.shards(32, 32, 6, 3)

    to = "to_memory_config"
    yield to, lambda t, make: t.to_memory_config(make(1, 1, 32, 576), shards(make))
    yield (
        "to_memory_config and type",
        lambda t, make: t.to_memory_config(make(1, 1, 20, 100), t.L1_MEMORY_CONFIG, t.bfloat8_b),
    )
    yield (
        "to_memory_config where it is already",
        lambda t, make: t.to_memory_config(make(1, 1, 20, 100), t.DRAM_MEMORY_CONFIG, t.bfloat8_b),
    )
    yield (
        "to_memory_config with too few cores",
        lambda t, make: t.to_memory_config(make(1, 1, 32, 608), shards(make)),
    )
    yield (
        "to_memory_config with too low shards",
        lambda t, make: t.to_memory_config(make(1, 1, 64, 576), shards(make)),
    )
    yield (
        "to_memory_config without shards",
        lambda t, make: t.to_memory_config(make(32, 64), t.L1_WIDTH_SHARDED_MEMORY_CONFIG),
    )
    yield (
        "to_memory_config of users",
        lambda t, make: t.to_memory_config(make(1, 4, 9, 64), make.shards(32, 64, 4, 1, "HEIGHT")),
    )
    yield (
        "to_memory_config beyond the grid",
        lambda t, make: t.to_memory_config(make(1, 1, 32, 576), make.shards(32, 64, 9, 1)),
    )


def _layouts() -> Iterator[tuple[str, Case]]:
    def shards(make: Maker) -> Any:
        return make.shards(32, 32, 6, 3)

    yield "s2i", lambda t, make: t.sharded_to_interleaved(make(1, 1, 32, 576, memory=shards(make)))
    yield "s2i of interleaved", lambda t, make: t.sharded_to_interleaved(make(32, 64))
    yield "i2s", lambda t, make: t.interleaved_to_sharded(make(1, 1, 32, 576), shards(make))
    yield (
        "i2s to DRAM",
        lambda t, make: t.interleaved_to_sharded(make(32, 64), t.DRAM_MEMORY_CONFIG),
    )
    for dtype in ("bfloat16", "bfloat8_b", "int32"):
        yield (
            f"to rows from {dtype}",
            lambda t, make, dtype=dtype: t.to_layout(
                make(20, 100, dtype=dtype), t.ROW_MAJOR_LAYOUT
            ),
        )
    yield (
        "to tiles",
        lambda t, make: t.to_layout(make(20, 100, rows=True), t.TILE_LAYOUT, t.bfloat8_b),
    )
    yield "to tiles of a line", lambda t, make: t.to_layout(make(32, rows=True), t.TILE_LAYOUT)
    yield (
        "to rows of another type",
        lambda t, make: t.to_layout(make(32, 64), t.ROW_MAJOR_LAYOUT, t.float32),
    )
    yield "untilize", lambda t, make: t.untilize(make(1, 1, 20, 100, dtype="bfloat8_b"))
    yield "tilize", lambda t, make: t.tilize(make(64, 128, rows=True), dtype=t.bfloat8_b)
    yield "tilize of part tiles", lambda t, make: t.tilize(make(20, 100, rows=True))
    yield "blocks in rows", lambda t, make: make(32, 64, dtype="bfloat8_b", rows=True)


def _shapes() -> Iterator[tuple[str, Case]]:
    for new in ((1, 4, 64, 576), (4, 1, 64, 576), (256, 576), (1, 256, 9, 64), (1, -1, 64, 576)):
        for rows in (False, True):
            yield (
                f"reshape to {new} in {'rows' if rows else 'tiles'}",
                lambda t, make, new=new, rows=rows: t.reshape(make(1, 1, 256, 576, rows=rows), new),
            )
    yield "reshape to another volume", lambda t, make: t.reshape(make(1, 1, 32, 64), (1, 1, 16, 64))
    yield (
        "reshape that hides padding",
        lambda t, make: t.reshape(
            make(1, 1, 32, 576, memory=make.shards(32, 32, 6, 3)), (1, 1, 8, 576), (1, 1, 32, 576)
        ),
    )
    yield "unsqueeze_to_4D", lambda t, make: t.unsqueeze_to_4D(make(5, 7))
    yield "unsqueeze_to_4D of five", lambda t, make: t.unsqueeze_to_4D(make(1, 1, 1, 5, 7))
    for start, end in ((0, 32), (5, 6), (0, 96)):
        yield (
            f"slice of blocks {start} to {end}",
            lambda t, make, start=start, end=end: t.slice(
                make(1, 1, 64, 96, dtype="bfloat8_b"), (0, 0, start, 0), (1, 1, end, 96)
            ),
        )
    yield "concat", lambda t, make: t.concat([make(1, 1, 20, 100), make(1, 1, 20, 60)], dim=3)
    yield (
        "concat of types",
        lambda t, make: t.concat([make(32, 64), make(32, 64, dtype="int32")], 1),
    )
    yield "concat of shapes", lambda t, make: t.concat([make(32, 64), make(64, 64)], 1)
    yield "pad", lambda t, make: t.pad(make(1, 1, 20, 100), [(0, 12), (0, 100)], 0.0)
    yield "pad in front", lambda t, make: t.pad(make(1, 1, 32, 64), [(32, 0), (0, 0)], 0.0)
    for order in ((0, 2, 1, 3), (0, 1, 3, 2), (3, 0, 1, 2)):
        yield f"permute {order}", lambda t, make, o=order: t.permute(make(2, 3, 20, 100), o)
    yield "transpose", lambda t, make: t.transpose(make(2, 3, 20, 100), 1, -2)
    yield (
        "transpose of users",
        lambda t, make: t.transpose(
            make(1, 4, 20, 64, memory=make.shards(32, 64, 4, 1, "HEIGHT")), 1, 2
        ),
    )


def cases() -> dict[str, Case]:
    """All calls by name."""
    parts = (
        _streamed_matmuls,
        _grid_matmuls,
        _plain_matmuls,
        _elementwise,
        _moves,
        _layouts,
        _shapes,
    )
    return {name: case for part in parts for name, case in part()}


def describe(tensor: Any) -> str:
    """Shape, type, layout and memory of a tensor."""
    memory, shard = tensor.memory_config(), tensor.memory_config().shard_spec
    text = f"{list(tensor.shape)} in {list(tensor.padded_shape)} {tensor.dtype.name} "
    text += f"{tensor.layout.name} {memory.memory_layout.name} {memory.buffer_type.name}"
    if shard is not None:
        text += f" {list(shard.shape)} on {shard.grid} {shard.orientation.name}"
    return text


def outcomes(ttnn: Any, device: Any) -> dict[str, str]:
    """What became of every case: a placement, or a refusal."""
    found = {}
    for name, call in cases().items():
        try:
            found[name] = describe(call(ttnn, Maker(ttnn, device)))
        except Exception as error:  # any refusal: the wheel's have several types
            found[name] = f"refused: {type(error).__name__}: {error}"
    return found


def bank_bytes(ttnn: Any, device: Any) -> dict[str, int]:
    """Bytes of each bank that one tensor takes."""
    make = Maker(ttnn, device)
    tensors: dict[str, Callable[[], Any]] = {
        "bfloat16": lambda: make(1, 1, 32, 64),
        "bfloat8_b weight": lambda: make(1, 1, 576, 960, dtype="bfloat8_b"),
        "bfloat4_b weight": lambda: make(1, 1, 576, 960, dtype="bfloat4_b"),
        "weight by banks": lambda: make(
            1, 1, 576, 960, dtype="bfloat8_b", memory=make.banks(576, 960)
        ),  # fmt: skip  # noqa: E501
        "rows": lambda: make(1000, 5, rows=True),
        "long rows": lambda: make(4915, 576, rows=True),
        "integers": lambda: make(32, dtype="int32", rows=True),
        "L1": lambda: make(1, 1, 32, 4096, memory=ttnn.L1_MEMORY_CONFIG),
        "rows in L1": lambda: make(1000, 5, rows=True, memory=ttnn.L1_MEMORY_CONFIG),
        "shards in L1": lambda: make(1, 1, 32, 576, memory=make.shards(32, 32, 6, 3)),
    }

    def taken() -> int:
        kinds = (ttnn.BufferType.DRAM, ttnn.BufferType.L1)
        views = [ttnn.get_memory_view(device, kind) for kind in kinds]
        return sum(view.total_bytes_allocated_per_bank for view in views)

    found = {}
    for name, build in tensors.items():
        before = taken()
        tensor = build()
        found[name] = taken() - before
        del tensor
    return found
