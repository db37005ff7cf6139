"""Calls of the ops a language model is made of, for wheel and emulator: placements and refusals.

A case is a function of (t, make) as in placement_cases.py; it returns a tensor or several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.ops.maker import Maker
from tests.ops.placement_cases import describe

Case = Callable[[Any, Maker], Any]
Cases = Iterator[tuple[str, Case]]


def per_user(t: Any, make: Maker, users: int, height: int, width: int) -> Any:
    """One user per core, row by row over the device's grid."""
    grid = make.device.compute_with_storage_grid_size()
    cores = t.num_cores_to_corerangeset(users, grid, row_wise=True)
    return t.create_sharded_memory_config(
        (height, width),
        cores,
        t.ShardStrategy.HEIGHT,
        t.ShardOrientation.ROW_MAJOR,
        use_height_and_width_as_shard_shape=True,
    )


def heads_apart(t: Any, make: Maker, users: int, width: int) -> Any:
    """Queries (8 heads), keys and values (2 each) of a decode step, keys on cores of their own."""
    cores = t.num_cores_to_corerangeset(
        12, make.device.compute_with_storage_grid_size(), row_wise=True
    )
    memory = t.create_sharded_memory_config(
        (32, width),
        cores,
        t.ShardStrategy.WIDTH,
        t.ShardOrientation.ROW_MAJOR,
        use_height_and_width_as_shard_shape=True,
    )
    return t.experimental.nlp_create_qkv_heads_decode(
        make(1, 1, users, 12 * width, memory=memory),
        num_heads=8,
        num_kv_heads=2,
        overlap_qk_coregrid=False,
    )


def _norm_config(t: Any, columns: int, rows: int, tiles: int, **other: Any) -> Any:
    fields = {"subblock_w": 1, "block_h": 1, "block_w": tiles, "inplace": False} | other
    return t.LayerNormShardedMultiCoreProgramConfig(
        compute_with_storage_grid_size=[columns, rows], **fields
    )


def norms() -> Cases:
    def plain(x: tuple[int, ...] = (1, 1, 32, 576), *, weight: Any = (1, 1, 18, 32), dtype: str = "bfloat16", rows: bool = True, kind: str = "bfloat16", in_rows: bool = False, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            given = {} if weight is None else {"weight": make(*weight, rows=rows, dtype=kind)}
            asked = {k: getattr(t, v) for k, v in options.items()}
            return t.rms_norm(make(*x, dtype=dtype, rows=in_rows), epsilon=1e-5, **given, **asked)

        return call

    yield "norm", plain()
    yield "norm without weight", plain(weight=None)
    yield "norm, weight in tiles", plain(weight=(1, 1, 1, 576), rows=False)
    yield "norm, weight tiles of 32 rows", plain(weight=(1, 1, 32, 576), rows=False)
    yield "norm, weight in one long row", plain(weight=(576,))
    yield "norm, weight in one long row of four dims", plain(weight=(1, 1, 1, 576))
    yield "norm, weight too short", plain(weight=(1, 1, 17, 32))
    yield "norm, weight tiles too short", plain(weight=(1, 1, 1, 544), rows=False)
    yield "norm, weight float32", plain(kind="float32")
    yield "norm, weight int32", plain(kind="int32")
    yield "norm, weight bfloat8_b", plain(weight=(1, 1, 1, 576), rows=False, kind="bfloat8_b")
    yield "norm of bfloat8_b", plain(dtype="bfloat8_b")
    yield "norm of bfloat4_b", plain(dtype="bfloat4_b")
    yield "norm of float32", plain(dtype="float32")
    yield "norm of int32", plain(dtype="int32")
    yield "norm of rows", plain(in_rows=True)
    yield "norm of 20 rows", plain((1, 1, 20, 576))
    yield "norm of 100 columns", plain((1, 1, 32, 100), weight=(1, 1, 1, 100), rows=False)
    yield "norm of two dims", plain((64, 576))
    yield "norm of heads", plain((1, 9, 128, 64), weight=(1, 1, 2, 32))
    yield "norm of decode heads", plain((1, 8, 9, 64), weight=(1, 1, 2, 32))
    yield "norm to L1", plain(memory_config="L1_MEMORY_CONFIG")

    def sharded(tiles: int = 1, cores: tuple[int, int] = (6, 3), *, users: int = 32, config: bool = True, memory: str | None = "own", dtype: str = "bfloat16", **other: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            shards = make.shards(32, 32, 6, 3)
            x = make(1, 1, users, 576, memory=shards, dtype=dtype)
            options = {} if memory is None else {"memory_config": shards}
            if memory not in (None, "own"):
                options["memory_config"] = getattr(t, memory)
            if config:
                options["program_config"] = _norm_config(t, *cores, tiles, **other)
            return t.rms_norm(x, epsilon=1e-5, weight=make(1, 1, 18, 32, rows=True), **options)

        return call

    yield "sharded norm", sharded()
    yield "sharded norm of 8 users", sharded(users=8)
    yield "sharded norm of bfloat8_b", sharded(dtype="bfloat8_b")
    yield "sharded norm, memory not given", sharded(memory=None)
    yield "sharded norm to DRAM", sharded(memory="DRAM_MEMORY_CONFIG")
    yield "sharded norm to unnamed shards", sharded(memory="L1_WIDTH_SHARDED_MEMORY_CONFIG")
    yield "sharded norm without a config", sharded(config=False)
    yield "sharded norm in place", sharded(inplace=True)
    yield "sharded norm with wide blocks", sharded(2)
    yield "sharded norm on another grid", sharded(cores=(3, 6))
    yield "sharded norm on too small a grid", sharded(cores=(3, 3))
    yield "sharded norm with high blocks", sharded(block_h=2)
    yield "sharded norm with wide subblocks", sharded(subblock_w=2)
    yield (
        "sharded norm of interleaved data",
        lambda t, make: t.rms_norm(make(1, 1, 32, 576), program_config=_norm_config(t, 6, 3, 1)),
    )
    yield (
        "norm of heads in shards",
        lambda t, make: t.rms_norm(
            make(1, 8, 9, 64, memory=per_user(t, make, 8, 32, 64)),
            weight=make(1, 1, 2, 32, rows=True),
        ),
    )


def distributed_norms() -> Cases:
    def before(x: tuple[int, ...] = (1, 1, 128, 576), dtype: str = "bfloat16", **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.rms_norm_pre_all_gather(
            make(*x, dtype=dtype), **{k: getattr(t, v) for k, v in options.items()}
        )

    def shared(t: Any, make: Maker) -> Any:
        x = make(1, 1, 128, 576)
        stats = t.rms_norm_pre_all_gather(x, use_2d_core_grid=True)
        return t.rms_norm_post_all_gather(
            x, t.concat([stats, stats], dim=3), weight=make(1, 1, 18, 32, rows=True),
            use_2d_core_grid=True,
        )  # fmt: skip

    yield "norm whose rows cores share", shared
    yield "statistics", before()
    yield "statistics of bfloat8_b", before(dtype="bfloat8_b")
    yield "statistics of float32", before(dtype="float32")
    yield "statistics of 20 rows", before((1, 1, 20, 576))
    yield (
        "statistics in float32",
        lambda t, make: t.rms_norm_pre_all_gather(make(1, 1, 128, 576), dtype=t.float32),
    )
    yield (
        "statistics in bfloat8_b",
        lambda t, make: t.rms_norm_pre_all_gather(make(1, 1, 128, 576), dtype=t.bfloat8_b),
    )
    yield "statistics to L1", before(memory_config="L1_MEMORY_CONFIG")
    yield (
        "statistics of rows",
        lambda t, make: t.rms_norm_pre_all_gather(make(1, 1, 128, 576, rows=True)),
    )

    def sharded(users: int = 32, *, config: bool = True, tiles: int = 1) -> Case:
        return lambda t, make: t.rms_norm_pre_all_gather(
            make(1, 1, users, 576, memory=make.shards(32, 32, 6, 3)),
            program_config=_norm_config(t, 6, 3, tiles) if config else None,
        )

    yield "sharded statistics", sharded()
    yield "sharded statistics of 8 users", sharded(8)
    yield "sharded statistics without a config", sharded(config=False)
    yield "sharded statistics with wide blocks", sharded(tiles=2)

    def after(x: tuple[int, ...] = (1, 1, 128, 576), stats: int = 64, rows: int | None = None, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.rms_norm_post_all_gather(
            make(*x),
            make(1, 1, rows or x[2], stats),
            epsilon=1e-5,
            weight=make(1, 1, 18, 32, rows=True),
            **{k: getattr(t, v) for k, v in options.items()},
        )

    yield "norm by statistics", after()
    yield "norm by statistics of 20 rows", after((1, 1, 20, 576))
    yield "norm by statistics to bfloat8_b", after(dtype="bfloat8_b")
    yield "norm by statistics to L1", after(memory_config="L1_MEMORY_CONFIG")
    yield "norm by statistics of no whole tile", after(stats=48)
    yield "norm by statistics of fewer rows", after(rows=64)
    yield (
        "norm by statistics without weight",
        lambda t, make: t.rms_norm_post_all_gather(make(1, 1, 32, 64), make(1, 1, 32, 64)),
    )

    def sharded_after(memory: str | None = None, *, one_core: bool = True, config: bool = True) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            stats = make.shards(32, 128, 1, 1) if one_core else make.shards(32, 32, 4, 1)
            options = {} if memory is None else {"memory_config": getattr(t, memory)}
            if config:
                options["program_config"] = _norm_config(t, 6, 3, 1)
            return t.rms_norm_post_all_gather(
                make(1, 1, 32, 576, memory=make.shards(32, 32, 6, 3)),
                make(1, 1, 32, 128, memory=stats),
                epsilon=1e-5,
                weight=make(1, 1, 18, 32, rows=True),
                **options,
            )

        return call

    yield "sharded norm by statistics", sharded_after()
    yield "sharded norm by scattered statistics", sharded_after(one_core=False)
    yield "sharded norm by statistics to DRAM", sharded_after("DRAM_MEMORY_CONFIG")
    yield "sharded norm by statistics without a config", sharded_after(config=False)
    yield (
        "sharded norm by interleaved statistics",
        lambda t, make: t.rms_norm_post_all_gather(
            make(1, 1, 32, 576, memory=make.shards(32, 32, 6, 3)),
            make(1, 1, 32, 128),
            program_config=_norm_config(t, 6, 3, 1),
        ),
    )


def heads() -> Cases:
    def viewed(height: int, width: int, *shape: int) -> Case:
        return lambda t, make: t.experimental.view(
            make(1, 32, 8, 128, rows=True, memory=make.shards(height, width, 8, 4, "HEIGHT")), shape
        )

    yield "heads in rows as a row of each user", viewed(8, 128, 1, 1, 32, 1024)
    yield "heads in rows as half of them", viewed(8, 128, 1, 1, 16, 1024)
    yield (
        "heads in rows in tiles of a user",
        lambda t, make: t.tilize(
            viewed(8, 128, 1, 1, 32, 1024)(t, make), memory_config=make.shards(32, 64, 8, 2)
        ),
    )

    def whole(x: tuple[int, ...] = (1, 1, 128, 960), h: int = 9, k: int | None = 3, *, dtype: str = "bfloat16", rows: bool = False, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            asked = {n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()}
            more = {} if k is None else {"num_kv_heads": k}
            asked = {"transpose_k_heads": False} | asked
            return t.experimental.nlp_create_qkv_heads(
                make(*x, dtype=dtype, rows=rows), num_heads=h, **more, **asked
            )

        return call

    yield "create heads", whole()
    yield "create heads of three prompts", whole((3, 1, 64, 960))
    yield "create heads of bfloat8_b", whole(dtype="bfloat8_b")
    yield "create heads of float32", whole(dtype="float32")
    yield "create heads of int32", whole(dtype="int32")
    yield "create heads of rows", whole(rows=True)
    yield "create heads to L1", whole(memory_config="L1_MEMORY_CONFIG")
    yield "create heads, keys transposed", whole(transpose_k_heads=True)
    yield (
        "create heads, keys transposed by default",
        lambda t, make: t.experimental.nlp_create_qkv_heads(
            make(1, 1, 128, 960), num_heads=9, num_kv_heads=3
        ),
    )
    yield "create heads, as many key heads", whole((1, 1, 128, 960), 5, None)
    yield "create heads of 100 rows", whole((1, 1, 100, 960))
    yield "create heads of three dims", whole((1, 128, 960))
    yield "create heads of batch in rows", whole((1, 2, 128, 960))
    yield "create heads that do not divide", whole((1, 1, 128, 992))
    yield "create heads of no whole tiles", whole((1, 1, 128, 15 * 48))

    def decode(users: int = 32, h: int = 9, k: int = 3, width: int = 64, *, dtype: str = "bfloat16", memory: Any = None, rows: bool = False, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            asked = {n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()}
            place = None if memory is None else memory(t, make)
            x = make(1, 1, users, (h + 2 * k) * width, dtype=dtype, memory=place, rows=rows)
            return t.experimental.nlp_create_qkv_heads_decode(
                x, num_heads=h, num_kv_heads=k, **asked
            )

        return call

    sharded = {"memory_config": "L1_HEIGHT_SHARDED_MEMORY_CONFIG"}
    for users in (1, 7, 8, 20, 32, 33, 64):
        yield f"decode heads of {users} users", decode(users, **sharded)
    yield "decode heads, memory not given", decode()
    yield "decode heads to DRAM", decode(memory_config="DRAM_MEMORY_CONFIG")
    yield "decode heads of bfloat8_b", decode(dtype="bfloat8_b", **sharded)
    yield "decode heads of float32", decode(dtype="float32", **sharded)
    yield "decode heads of rows", decode(rows=True, **sharded)
    yield "decode heads, 40", decode(8, 40, 8, 128, **sharded)
    yield "decode heads, 33", decode(8, 33, 1, 64, **sharded)
    yield "decode heads of width 96", decode(8, 4, 2, 96, **sharded)
    yield "decode heads of width 80", decode(8, 4, 2, 80, **sharded)
    yield "decode heads from L1", decode(memory=lambda t, m: t.L1_MEMORY_CONFIG, **sharded)
    yield "decode heads from shards", decode(memory=lambda t, m: m.shards(32, 64, 5, 3), **sharded)
    yield (
        "decode heads from tile shards",
        decode(memory=lambda t, m: m.shards(32, 32, 6, 5), **sharded),
    )
    yield (
        "decode heads from wide shards",
        decode(memory=lambda t, m: m.shards(32, 192, 5, 1), **sharded),
    )
    yield "decode heads on two grids", decode(overlap_qk_coregrid=False, **sharded)
    yield "decode heads of 8 users on two grids", decode(8, overlap_qk_coregrid=False, **sharded)
    yield (
        "decode heads on two grids from shards",
        decode(memory=lambda t, m: m.shards(32, 64, 5, 3), overlap_qk_coregrid=False, **sharded),
    )
    yield (
        "decode heads of two rows",
        lambda t, make: t.experimental.nlp_create_qkv_heads_decode(
            make(1, 2, 32, 960), num_heads=9, num_kv_heads=3
        ),
    )
    yield (
        "decode heads that do not divide",
        lambda t, make: t.experimental.nlp_create_qkv_heads_decode(
            make(1, 1, 32, 992), num_heads=9, num_kv_heads=3
        ),
    )
    yield (
        "decode heads of more key heads",
        lambda t, make: t.experimental.nlp_create_qkv_heads_decode(
            make(1, 1, 32, 960), num_heads=3, num_kv_heads=6
        ),
    )


def joined_heads() -> Cases:
    def whole(x: tuple[int, ...] = (1, 9, 128, 64), dtype: str = "bfloat16", rows: bool = False, memory: Any = None, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.experimental.nlp_concat_heads(
            make(*x, dtype=dtype, rows=rows, memory=None if memory is None else memory(t, make)),
            **{k: getattr(t, v) for k, v in options.items()},
        )

    yield "join heads", whole()
    yield "join heads of three prompts", whole((3, 9, 64, 64))
    yield "join heads of bfloat8_b", whole(dtype="bfloat8_b")
    yield "join heads of float32", whole(dtype="float32")
    yield "join heads of int32", whole(dtype="int32")
    yield "join heads of rows", whole(rows=True)
    yield "join heads of 100 rows", whole((1, 9, 100, 64))
    yield "join heads of width 80", whole((1, 4, 128, 80))
    yield "join heads to L1", whole(memory_config="L1_MEMORY_CONFIG")
    yield "join heads from L1", whole(memory=lambda t, m: t.L1_MEMORY_CONFIG)

    def decode(users: int = 32, h: int = 9, width: int = 64, *, told: int | None = None, dtype: str = "bfloat16", height: int = 32, cores: int | None = None, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            x = make(
                1, users, h, width, dtype=dtype, memory=per_user(t, make, users, height, width)
            )
            asked = {n: getattr(t, v) for n, v in options.items()}
            return t.experimental.nlp_concat_heads_decode(x, num_heads=told or h, **asked)

        return call

    for users in (1, 7, 8, 20, 32):
        yield f"join decode heads of {users} users", decode(users)
    yield "join decode heads, 32 of 128", decode(32, 32, 128)
    yield "join decode heads, 40", decode(8, 40, height=64)
    yield "join decode heads, 72", decode(8, 72, height=96)
    yield "join decode heads, fewer than there are", decode(8, 9, told=5)
    yield "join decode heads, more than there are", decode(8, 9, told=12)
    yield "join decode heads, more than a tile", decode(8, 9, told=40)
    yield "join decode heads of width 80", decode(8, 4, 80)
    yield "join decode heads of width 96", decode(8, 4, 96)
    yield "join decode heads of float32", decode(dtype="float32")
    yield "join decode heads of bfloat8_b", decode(dtype="bfloat8_b")
    yield "join decode heads to shards", decode(memory_config="L1_WIDTH_SHARDED_MEMORY_CONFIG")
    yield "join decode heads to DRAM", decode(memory_config="DRAM_MEMORY_CONFIG")
    yield (
        "join decode heads in DRAM",
        lambda t, make: t.experimental.nlp_concat_heads_decode(make(1, 8, 9, 64), num_heads=9),
    )
    yield (
        "join decode heads on a rectangle",
        lambda t, make: t.experimental.nlp_concat_heads_decode(
            make(1, 32, 9, 64, memory=make.shards(32, 64, 8, 4, "HEIGHT")), num_heads=9
        ),
    )
    yield (
        "join decode heads on named cores",
        lambda t, make: t.experimental.nlp_concat_heads_decode(
            make(1, 32, 9, 64, memory=per_user(t, make, 32, 32, 64)),
            num_heads=9,
            sub_core_grids=per_user(t, make, 32, 32, 64).shard_spec.grid,
        ),
    )


def rotations() -> Cases:
    def prefill(x: tuple[int, ...] = (1, 9, 128, 64), *, table: tuple[int, ...] | None = None, turn: tuple[int, ...] = (1, 1, 32, 32), dtype: str = "bfloat16", table_type: str = "bfloat16", rows: bool = False, x_rows: bool = False, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            shape = table or (1, 1, x[2], x[3])
            cos, sin = (make(*shape, dtype=table_type, rows=rows) for _ in range(2))
            asked = {n: getattr(t, v) for n, v in options.items()}
            return t.experimental.rotary_embedding_llama(
                make(*x, dtype=dtype, rows=x_rows), cos, sin, make(*turn), is_decode_mode=False,
                **asked,
            )  # fmt: skip

        return call

    yield "turn", prefill()
    yield "turn three prompts", prefill((3, 9, 64, 64), table=(1, 1, 64, 64))
    yield "turn three prompts by three tables", prefill((3, 9, 64, 64), table=(3, 1, 64, 64))
    yield "turn two prompts by three tables", prefill((2, 9, 64, 64), table=(3, 1, 64, 64))
    yield "turn by a longer table", prefill(table=(1, 1, 256, 64))
    yield "turn by a shorter table", prefill(table=(1, 1, 64, 64))
    yield "turn by a wider table", prefill(table=(1, 1, 128, 128))
    yield "turn by a table per head", prefill(table=(1, 9, 128, 64))
    yield "turn by a table of rows", prefill(rows=True)
    yield "turn by a float32 table", prefill(table_type="float32")
    yield "turn bfloat8_b", prefill(dtype="bfloat8_b")
    yield "turn float32", prefill(dtype="float32")
    yield "turn rows", prefill(x_rows=True)
    yield "turn width 80", prefill((1, 4, 128, 80))
    yield "turn width 96", prefill((1, 4, 128, 96))
    yield "turn width 288", prefill((1, 4, 128, 288))
    yield "turn 100 positions", prefill((1, 9, 100, 64))
    yield "turn with a long transformation", prefill(turn=(1, 1, 1024, 32))
    yield "turn with a wide transformation", prefill(turn=(1, 1, 32, 64))
    yield "turn to L1", prefill(memory_config="L1_MEMORY_CONFIG")

    def decode(users: int = 32, h: int = 9, width: int = 64, *, table_rows: int = 1, flat: str = "", turn_users: int | None = None, table_users: int | None = None, dtype: str = "bfloat16", cores: int | None = None, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            height = -(-h // 32) * 32
            own = per_user(t, make, users, height, width)
            n = table_users or users
            tables = per_user(t, make, n, 32, width)
            m = turn_users or users
            turn = per_user(t, make, m, 32, 32)
            asked = {name: getattr(t, v) for name, v in options.items()}
            return t.experimental.rotary_embedding_llama(
                make(1, users, h, width, dtype=dtype, memory=None if "x" in flat else own),
                make(1, n, table_rows, width, memory=None if "c" in flat else tables),
                make(1, n, table_rows, width, memory=None if "s" in flat else tables),
                make(1, 1, 32 * m, 32, memory=None if "t" in flat else turn),
                is_decode_mode=True,
                **asked,
            )

        return call

    for users in (1, 7, 8, 32):
        yield f"decode turn of {users} users", decode(users)
    yield "decode turn by whole tiles", decode(table_rows=32)
    yield "decode turn of 40 heads", decode(8, 40)
    yield "decode turn of width 128", decode(8, 8, 128)
    yield "decode turn of width 80", decode(8, 8, 80)
    for part, name in (("x", "input"), ("c", "cosines"), ("s", "sines"), ("t", "transformation")):
        yield f"decode turn of interleaved {name}", decode(flat=part)
    yield "decode turn by tables of more users", decode(8, table_users=16)
    yield "decode turn by tables of fewer users", decode(8, table_users=4)
    yield "decode turn by transformations of more users", decode(8, turn_users=16)
    yield "decode turn by transformations of fewer users", decode(8, turn_users=4)
    yield "decode turn of float32", decode(dtype="float32")
    yield "decode turn to DRAM", decode(memory_config="DRAM_MEMORY_CONFIG")

    def together(users: int = 8, *, apart: bool = True, table_users: int | None = None, width: int = 64) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            q, k, _ = heads_apart(t, make, users, width)
            n = table_users or 2 * users
            cos, sin = (
                make(1, n, 1, width, memory=per_user(t, make, n, 32, width)) for _ in range(2)
            )
            turn = make(1, 1, 32 * n, 32, memory=per_user(t, make, n, 32, 32))
            return t.experimental.rotary_embedding_llama_fused_qk(
                q, k if apart else q, cos, sin, turn
            )

        return call

    for users in (1, 7, 32):
        yield f"turn queries and keys of {users} users", together(users)
    yield "turn queries and keys of width 96", together(width=96)
    yield "turn queries and keys on the same cores", together(apart=False)
    yield "turn queries and keys by tables of fewer users", together(table_users=8)


def caches() -> Cases:
    def update(users: int = 8, *, k: int = 3, width: int = 64, block: int = 32, cache: str = "bfloat8_b", dtype: str = "bfloat16", index: str = "int32", table: str = "int32", paged: bool = True, flat: bool = False, rows: int | None = None, positions: int | None = None, index_rows: bool = True, table_rows: bool = True, x_heads: int | None = None, x_width: int | None = None) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            own = None if flat else per_user(t, make, users, 32, x_width or width)
            pages = make(rows or users, 8, dtype=table, rows=table_rows) if paged else None
            keys = (64, k, block, width) if paged else (rows or users, k, 256, width)
            return t.experimental.paged_update_cache(
                make(*keys, dtype=cache),
                make(1, users, x_heads or k, x_width or width, dtype=dtype, memory=own),
                update_idxs_tensor=make(positions or users, dtype=index, rows=index_rows),
                page_table=pages,
            )

        return call

    yield "update pages", update()
    yield "update pages of 32 users", update(32)
    yield "update pages of one user", update(1)
    yield "update bfloat16 pages", update(cache="bfloat16")
    yield "update bfloat4_b pages", update(cache="bfloat4_b")
    yield "update float32 pages", update(cache="float32")
    yield "update float32 pages by float32", update(cache="float32", dtype="float32")
    yield "update pages of 64", update(block=64)
    yield "update pages by bfloat8_b", update(dtype="bfloat8_b")
    yield "update pages by float32", update(dtype="float32")
    yield "update pages by interleaved data", update(flat=True)
    yield "update pages at uint32 positions", update(index="uint32")
    yield "update pages by a uint32 table", update(table="uint32")
    yield "update pages by a uint16 table", update(table="uint16")
    yield "update pages by a table of fewer rows", update(rows=4)
    yield "update pages by a table of more rows", update(rows=16)
    yield "update pages at fewer positions", update(positions=4)
    yield "update pages at more positions", update(positions=16)
    yield "update pages at positions in tiles", update(index_rows=False)
    yield "update pages by a table in tiles", update(table_rows=False)
    yield "update pages of more heads", update(x_heads=9)
    yield "update pages of another width", update(x_width=32)
    yield "update rows", update(paged=False)
    yield "update rows of 32 users", update(32, paged=False)
    yield "update fewer rows", update(8, paged=False, rows=4)
    yield "update more rows", update(8, paged=False, rows=16)
    yield (
        "update pages at a list",
        lambda t, make: t.experimental.paged_update_cache(
            make(64, 3, 32, 64, dtype="bfloat8_b"),
            make(1, 8, 3, 64, memory=per_user(t, make, 8, 32, 64)),
            update_idxs=[0] * 8,
            page_table=make(8, 8, dtype="int32", rows=True),
        ),
    )
    yield (
        "update pages at nothing",
        lambda t, make: t.experimental.paged_update_cache(
            make(64, 3, 32, 64, dtype="bfloat8_b"),
            make(1, 8, 3, 64, memory=per_user(t, make, 8, 32, 64)),
            page_table=make(8, 8, dtype="int32", rows=True),
        ),
    )

    def together(users: int = 8, *, paged: bool = True, apart: bool = True) -> Case:
        def call(t: Any, make: Maker) -> Any:
            _, k, v = heads_apart(t, make, users, 64)
            shape = (64, 2, 32, 64) if paged else (users, 2, 256, 64)
            keys, values = (make(*shape, dtype="bfloat8_b") for _ in range(2))
            return t.experimental.paged_fused_update_cache(
                keys, k if apart else v, values, v,
                update_idxs_tensor=make(users, dtype="int32", rows=True),
                page_table=make(users, 8, dtype="int32", rows=True) if paged else None,
            )  # fmt: skip

        return call

    for users in (1, 8, 32):
        yield f"update keys and values of {users} users", together(users)
    yield "update rows of keys and values", together(paged=False)
    yield "update keys and values from the same cores", together(apart=False)

    def fill(users: int = 1, length: int = 128, *, k: int = 3, width: int = 64, block: int = 32, dtype: str = "bfloat8_b", cache: str = "bfloat8_b", table: tuple[int, int] = (8, 8), table_type: str = "int32", at: int | None = 0, index: tuple[int, ...] | None = None, index_type: str = "uint32", x_heads: int | None = None, x_rows: bool = False) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            where: dict[str, Any] = {} if at is None else {"batch_idx": at}
            if index is not None:
                where = {"batch_idx_tensor": make(*index, dtype=index_type, rows=True)}
            return t.experimental.paged_fill_cache(
                make(64, k, block, width, dtype=cache),
                make(users, x_heads or k, length, width, dtype=dtype, rows=x_rows),
                make(*table, dtype=table_type, rows=True),
                **where,
            )

        return call

    yield "fill pages", fill()
    yield "fill pages at a default row", fill(at=None)
    yield "fill bfloat16 pages", fill(dtype="bfloat16", cache="bfloat16")
    yield "fill pages by another type", fill(dtype="bfloat16")
    yield "fill pages from rows", fill(dtype="bfloat16", cache="bfloat16", x_rows=True)
    yield "fill pages with 100 positions", fill(length=100)
    yield "fill pages of 64", fill(block=64)
    yield "fill more pages than the table has", fill(length=512)
    yield "fill pages by a uint32 table", fill(table_type="uint32")
    yield "fill pages of a row beyond the table", fill(at=8)
    yield "fill pages of other heads", fill(x_heads=2)
    yield "fill pages of a user by tensor", fill(index=(1,))
    yield "fill pages of a user by int32 tensor", fill(index=(1,), index_type="int32")
    yield "fill pages of a user by uint16 tensor", fill(index=(1,), index_type="uint16")
    yield "fill pages of four users", fill(4, index=(4,))
    yield "fill pages of four users by one place", fill(4, index=(1,))
    yield "fill pages of four users without places", fill(4)
    yield "fill pages of four users by one row", fill(4, index=(4,), table=(1, 8))

    def dense(length: int = 128, *, at: int = 0, dtype: str = "bfloat8_b", cache: str = "bfloat8_b", users: int = 1, x_heads: int = 3, width: int = 64) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.fill_cache(
            make(8, 3, 256, 64, dtype=cache), make(users, x_heads, length, width, dtype=dtype), at
        )

    yield "fill a row", dense()
    yield "fill the last row", dense(at=7)
    yield "fill a row beyond the cache", dense(at=8)
    yield "fill a row by another type", dense(dtype="bfloat16")
    yield "fill a bfloat16 row", dense(dtype="bfloat16", cache="bfloat16")
    yield "fill a row with 100 positions", dense(100)
    yield "fill a row with too many positions", dense(512)
    yield "fill a row of other heads", dense(x_heads=2)
    yield "fill a row of another width", dense(width=32)
    yield "fill a row by two prompts", dense(users=2)


def _scores(t: Any, q: int, k: int, grid: tuple[int, int] = (8, 8)) -> Any:
    return t.SDPAProgramConfig(
        compute_with_storage_grid_size=grid, q_chunk_size=q, k_chunk_size=k, exp_approx_mode=False
    )


def attention() -> Cases:
    def whole(q: tuple[int, ...] = (1, 9, 128, 64), k: tuple[int, ...] | None = None, *, v: tuple[int, ...] | None = None, dtype: str = "bfloat8_b", kv: str = "bfloat8_b", chunk: Any = (64, 64), rows: bool = False, grid: tuple[int, int] = (8, 8), **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            keys = k or (q[0], 3, *q[2:])
            asked = {n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()}
            if chunk is not None:
                asked["program_config"] = _scores(t, *chunk, grid)
            asked = {"is_causal": True} | asked
            return t.transformer.scaled_dot_product_attention(
                make(*q, dtype=dtype, rows=rows),
                make(*keys, dtype=kv),
                make(*(v or keys), dtype=kv),
                **asked,
            )

        return call

    yield "attend", whole()
    yield "attend without a config", whole(chunk=None)
    yield "attend for three prompts", whole((3, 9, 128, 64))
    yield "attend in bfloat16", whole(dtype="bfloat16", kv="bfloat16")
    yield "attend bfloat16 over bfloat8_b", whole(dtype="bfloat16")
    yield "attend over bfloat4_b", whole(kv="bfloat4_b")
    yield "attend in float32", whole(dtype="float32", kv="float32")
    yield "attend for rows", whole(dtype="bfloat16", kv="bfloat16", rows=True)
    yield "attend over 100 positions", whole((1, 9, 100, 64))
    yield "attend over more keys", whole(k=(1, 3, 256, 64))
    yield "attend over other prompts", whole(k=(2, 3, 128, 64))
    yield "attend over heads that do not divide", whole(k=(1, 4, 128, 64))
    yield "attend over more heads", whole(k=(1, 18, 128, 64))
    yield "attend over wider keys", whole(k=(1, 3, 128, 128))
    yield "attend over other values", whole(k=(1, 3, 128, 64), v=(1, 3, 256, 64))
    yield "attend in chunks of 100", whole(chunk=(100, 64))
    yield "attend in key chunks of 100", whole(chunk=(64, 100))
    yield "attend in chunks of 0", whole(chunk=(0, 64))
    yield "attend on too large a grid", whole(grid=(12, 9))
    yield "attend in a window", whole(sliding_window_size=64)
    yield "attend in an odd window", whole(sliding_window_size=50)
    yield "attend in no window", whole(sliding_window_size=0)
    yield "attend with a scale", whole(scale=0.125)
    yield "attend with any scale", whole(scale=0.088)
    yield "attend to L1", whole(memory_config="L1_MEMORY_CONFIG")
    yield "attend to shards", whole(memory_config="L1_HEIGHT_SHARDED_MEMORY_CONFIG")
    yield "attend to all", whole(is_causal=False)

    def chunked(length: int = 128, start: Any = 128, *, q: str = "bfloat8_b", kv: str = "bfloat8_b", table: tuple[int, int] = (1, 8), table_type: str = "int32", chunk: tuple[int, int] | None = (64, 64), block: int = 32, scale: Any = 0.125, k: int = 3, users: int = 1, index: str = "int32", index_shape: tuple[int, ...] = (1,), **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            asked: dict[str, Any] = {n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()}  # fmt: skip  # noqa: E501
            if start == "tensor":
                asked["chunk_start_idx_tensor"] = make(*index_shape, dtype=index, rows=True)
            elif start is not None:
                asked["chunk_start_idx"] = start
            if chunk is not None:
                asked["program_config"] = _scores(t, *chunk)
            return t.transformer.chunked_scaled_dot_product_attention(
                make(users, 9, length, 64, dtype=q),
                make(64, k, block, 64, dtype=kv),
                make(64, k, block, 64, dtype=kv),
                make(*table, dtype=table_type, rows=True),
                scale=scale,
                **asked,
            )

        return call

    yield "attend over pages", chunked()
    yield "attend over pages from 0", chunked(start=0)
    yield "attend over pages from a tensor", chunked(start="tensor")
    yield "attend over pages from a uint32 tensor", chunked(start="tensor", index="uint32")
    yield "attend over pages from a tensor, in odd rows", chunked(start="tensor", table=(1, 12))
    yield "attend over pages from a tensor of two", chunked(start="tensor", index_shape=(2,))
    yield "attend over pages from nowhere", chunked(start=None)
    yield "attend over pages from an odd place", chunked(start=100)
    yield "attend over pages before the first", chunked(start=-64)
    yield "attend over pages without a config", chunked(chunk=None)
    yield "attend over pages without a config, odd place", chunked(start=16, chunk=None)
    yield "attend over pages beyond the table", chunked(start=192)
    yield "attend over pages of a uint32 table", chunked(table_type="uint32")
    yield "attend over pages of two rows", chunked(table=(2, 8))
    yield "attend over pages for two users", chunked(users=2, table=(2, 8))
    yield "attend over bfloat16 pages", chunked(kv="bfloat16")
    yield "attend over bfloat4_b pages", chunked(kv="bfloat4_b")
    yield "attend bfloat16 over pages", chunked(q="bfloat16")
    yield "attend over pages of 64", chunked(block=64)
    yield "attend over pages of other heads", chunked(k=4)
    yield "attend over pages by any scale", chunked(scale=0.088)
    yield "attend over 100 positions in pages", chunked(100, 128)
    yield "attend over six pages", chunked(64, 128, table=(1, 6))
    yield "attend over pages in a window", chunked(sliding_window_size=64)
    yield "attend over pages to L1", chunked(memory_config="L1_MEMORY_CONFIG")


def decode_attention() -> Cases:
    def paged(users: int = 8, h: int = 9, k: int = 3, width: int = 64, *, q: str = "bfloat16", kv: str = "bfloat8_b", index: str = "int32", table_type: str = "int32", table: int | None = None, positions: int | None = None, placed: Any = "sharded", block: int = 32, chunk: tuple[int, int] | None = (0, 0), at: bool = True, grid: tuple[int, int] = (8, 8), table_rows: bool = True, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            asked = {n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()}
            if chunk is not None:
                asked["program_config"] = _scores(t, *chunk, grid)
            if at:
                asked["cur_pos_tensor"] = make(positions or users, dtype=index, rows=True)
            own = None
            if placed == "sharded":
                own = per_user(t, make, users, -(-h // 32) * 32, width)
            elif placed:
                own = getattr(t, placed)
            return t.transformer.paged_scaled_dot_product_attention_decode(
                make(1, users, h, width, dtype=q, memory=own),
                make(64, k, block, width, dtype=kv),
                make(64, k, block, width, dtype=kv),
                page_table_tensor=make(table or users, 8, dtype=table_type, rows=table_rows),
                **asked,
            )

        return call

    yield "attend to one's pages", paged()
    for users in (1, 32):
        yield f"attend to pages of {users} users", paged(users)
    yield "attend to pages in DRAM", paged(placed=None)
    yield "attend to pages, to DRAM", paged(memory_config="DRAM_MEMORY_CONFIG")
    yield "attend to pages, to L1", paged(memory_config="L1_MEMORY_CONFIG")
    yield "attend to pages, to shards", paged(memory_config="L1_HEIGHT_SHARDED_MEMORY_CONFIG")
    yield "attend to pages without a config", paged(chunk=None)
    yield "attend to pages in chunks of 48", paged(chunk=(0, 48))
    yield "attend to pages in chunks of 64", paged(chunk=(0, 64))
    yield "attend to pages on too large a grid", paged(grid=(12, 9))
    yield "attend to pages nowhere", paged(at=False)
    yield "attend to pages at uint32 positions", paged(index="uint32")
    yield "attend to pages of a uint32 table", paged(table_type="uint32")
    yield "attend to pages of a table in tiles", paged(table_rows=False)
    yield "attend to pages of fewer rows", paged(table=4)
    yield "attend to pages of more rows", paged(table=16)
    yield "attend to pages at fewer positions", paged(positions=4)
    yield "attend to pages of 64", paged(block=64)
    yield "attend to bfloat16 pages", paged(kv="bfloat16")
    yield "attend to bfloat4_b pages", paged(kv="bfloat4_b")
    yield "attend to pages by bfloat8_b", paged(q="bfloat8_b", placed=None)
    yield "attend to pages by float32", paged(q="float32", placed=None)
    yield "attend to pages of other heads", paged(k=4)
    yield "attend to pages of 40 heads", paged(8, 40, 8)
    yield "attend to pages in a window", paged(sliding_window_size=64)
    yield "attend to pages by any scale", paged(scale=0.088)
    yield "attend to pages, not causal", paged(is_causal=False)

    def dense(users: int = 8, h: int = 9, k: int = 3, length: int = 256, *, kv: str = "bfloat8_b", rows: int | None = None, at: str | None = "int32", chunk: tuple[int, int] | None = (0, 0), **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            asked = {n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()}
            if chunk is not None:
                asked["program_config"] = _scores(t, *chunk)
            if at is not None:
                asked["cur_pos_tensor"] = make(users, dtype=at, rows=True)
            return t.transformer.scaled_dot_product_attention_decode(
                make(1, users, h, 64, memory=per_user(t, make, users, 32, 64)),
                make(rows or users, k, length, 64, dtype=kv),
                make(rows or users, k, length, 64, dtype=kv),
                **asked,
            )

        return call

    yield "attend to one's row", dense()
    yield "attend to rows of 32 users", dense(32)
    yield "attend to rows without a config", dense(chunk=None)
    yield "attend to rows at uint32 positions", dense(at="uint32")
    yield "attend to rows nowhere", dense(at=None)
    yield "attend to rows at a list", dense(at=None, cur_pos=[3] * 8)
    yield "attend to fewer rows", dense(rows=4)
    yield "attend to more rows", dense(rows=16)
    yield "attend to rows of 100", dense(length=100)
    yield "attend to rows in a window", dense(sliding_window_size=64)
    yield "attend to rows, to L1", dense(memory_config="L1_MEMORY_CONFIG")


def lookups() -> Cases:
    def rows(ids: tuple[int, ...] = (1, 1, 1, 128), table: tuple[int, ...] = (1, 1, 1000, 576), *, dtype: str = "uint32", kind: str = "bfloat16", in_tiles: bool = False, table_tiles: bool = False, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.embedding(
            make(*ids, dtype=dtype, rows=not in_tiles),
            make(*table, dtype=kind, rows=not table_tiles),
            **{k: getattr(t, v) for k, v in options.items()},
        )

    tiles = {"layout": "TILE_LAYOUT"}
    yield "look up", rows(**tiles)
    yield "look up in rows", rows()
    yield "look up two dims", rows((1, 32), **tiles)
    yield "look up one dim", rows((32,), **tiles)
    yield "look up several lists", rows((3, 1, 1, 64), **tiles)
    yield "look up lists in lists", rows((1, 1, 3, 64), **tiles)
    yield "look up 20", rows((1, 20), **tiles)
    yield "look up 20 in rows", rows((1, 20))
    yield "look up by int32", rows(dtype="int32", **tiles)
    yield "look up by bfloat16", rows(dtype="bfloat16", **tiles)
    yield "look up by tiles of ids", rows((1, 32), in_tiles=True, **tiles)
    yield "look up in a table of tiles", rows(table_tiles=True, **tiles)
    yield "look up in a float32 table", rows(kind="float32", **tiles)
    yield "look up in a table of two dims", rows(table=(1000, 576), **tiles)
    yield "look up in two tables", rows(table=(1, 2, 1000, 576), **tiles)
    yield (
        "look up to bfloat8_b",
        lambda t, make: t.embedding(
            make(1, 32, dtype="uint32", rows=True),
            make(1, 1, 100, 64, rows=True),
            layout=t.TILE_LAYOUT,
            dtype=t.bfloat8_b,
        ),
    )
    yield "look up to L1", rows((1, 32), memory_config="L1_MEMORY_CONFIG", **tiles)
    yield "look up narrow rows", rows((1, 32), (1, 1, 100, 48), **tiles)
    yield (
        "look up to shards",
        lambda t, make: t.embedding(
            make(1, 32, dtype="uint32", rows=True),
            make(1, 1, 100, 576, rows=True),
            layout=t.TILE_LAYOUT,
            memory_config=make.shards(32, 32, 6, 3),
        ),  # fmt: skip
    )

    def largest(x: tuple[int, ...] = (1, 1, 32, 1024), *, dtype: str = "bfloat16", in_tiles: bool = False, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.argmax(make(*x, dtype=dtype, rows=not in_tiles), **options)

    for in_tiles in (False, True):
        name = "tiles" if in_tiles else "rows"
        yield f"argmax in {name}", largest(dim=-1, in_tiles=in_tiles)
        yield f"argmax in {name} by dim 3", largest(dim=3, in_tiles=in_tiles)
        yield f"argmax in {name}, dims kept", largest(dim=-1, keepdim=True, in_tiles=in_tiles)
        for dtype in ("float32", "int32", "uint32", "uint16"):
            yield f"argmax of {dtype} in {name}", largest(dim=-1, dtype=dtype, in_tiles=in_tiles)
    yield "argmax of bfloat8_b", largest(dim=-1, dtype="bfloat8_b", in_tiles=True)
    yield "argmax of 20 rows of 100", largest((1, 1, 20, 100), dim=-1)
    yield "argmax over all", largest()
    yield "argmax of rows", largest(dim=2)

    def best(width: int = 1024, k: int = 32, *, rows: int = 32, dtype: str = "bfloat16", in_rows: bool = False, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.topk(
            make(1, 1, rows, width, dtype=dtype, rows=in_rows),
            k=k,
            **{n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()},
        )

    yield "topk", best(dim=-1)
    yield "topk of 65536", best(65536, dim=-1)
    yield "topk of 65568", best(65568, dim=-1)
    yield "topk of 128256", best(128256, dim=-1)
    yield "topk of 49152", best(49152, dim=-1)
    yield "topk of 8 rows", best(rows=8)
    yield "topk of 100 columns", best(100)
    yield "topk of 32 columns", best(32)
    yield "topk of 5", best(k=5)
    yield "topk of 64", best(k=64)
    yield "topk of more than there are", best(64, 100)
    yield "topk of bfloat8_b", best(dtype="bfloat8_b")
    yield "topk of float32", best(dtype="float32")
    yield "topk of int32", best(dtype="int32")
    yield "topk of uint16", best(dtype="uint16")
    yield "topk in rows", best(in_rows=True)
    yield "topk to L1", best(memory_config="L1_MEMORY_CONFIG")

    def draw(users: int = 32, width: int = 32, *, values: str = "bfloat16", index: str = "int32", index_tiles: bool = False, value_rows: bool = False, k: str = "uint32", p: str = "bfloat16", temp: str = "bfloat16", given: int | None = None, into: tuple[int, ...] | None = None, into_type: str = "uint32", index_width: int | None = None, k_tiles: bool = False, batch: int = 1) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            n = given or users
            out = {} if into is None else {"output_tensor": make(*into, dtype=into_type, rows=True)}
            return t.sampling(
                make(1, batch, users, width, dtype=values, rows=value_rows),
                make(1, batch, users, index_width or width, dtype=index, rows=not index_tiles),
                k=make(n, dtype=k, rows=not k_tiles),
                p=make(n, dtype=p, rows=True),
                temp=make(n, dtype=temp, rows=True),
                seed=7,
                **out,
            )

        return call

    def seed(users: int = 32, given: int | None = None, *, rows: bool = True, dtype: str = "uint32", shape: tuple[int, ...] = ()) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            seeds = make(*(shape or (users,)), dtype=dtype, rows=rows)
            return t.manual_seed(seeds, user_ids=make(given or users, dtype="uint32", rows=True))

        return call

    yield "seeds", seed()
    yield "seeds of 8 users", seed(8)
    yield "seeds for other users", seed(8, 4)
    yield "seeds in a matrix", seed(8, shape=(1, 8))
    yield "seeds in tiles", seed(32, rows=False)
    yield "seeds of int32", seed(dtype="int32")

    yield "draw", draw()
    for users in (1, 8, 16, 33, 64):
        yield f"draw for {users} users", draw(users)
    yield "draw out of 64", draw(width=64)
    yield "draw out of 96", draw(width=96)
    yield "draw out of 48", draw(width=48)
    yield "draw out of 256", draw(width=256)
    yield "draw by uint32 indices", draw(index="uint32")
    yield "draw by uint16 indices", draw(index="uint16")
    yield "draw by indices in tiles", draw(index_tiles=True)
    yield "draw by fewer indices", draw(width=64, index_width=32)
    yield "draw from float32", draw(values="float32")
    yield "draw from bfloat8_b", draw(values="bfloat8_b")
    yield "draw from rows", draw(value_rows=True)
    yield "draw with int32 k", draw(k="int32")
    yield "draw with k in tiles", draw(k_tiles=True)
    yield "draw with float32 p", draw(p="float32")
    yield "draw with float32 temperature", draw(temp="float32")
    yield "draw with fewer settings", draw(given=16)
    yield "draw of two batches", draw(batch=2)
    yield "draw into a tensor", draw(into=(1, 1, 1, 32))
    yield "draw into an int32 tensor", draw(into=(1, 1, 1, 32), into_type="int32")
    yield "draw into a tensor of another shape", draw(into=(1, 1, 32, 1))


def collectives(axes: tuple[int, int]) -> Cases:
    """Calls along each mesh axis of `axes` = (rows, columns) and along none."""
    named: list[tuple[str, dict[str, Any]]] = [
        (f"along axis {axis} of {axes[0]}x{axes[1]}", {"cluster_axis": axis}) for axis in (0, 1)
    ]
    named.append((f"along no axis of {axes[0]}x{axes[1]}", {}))
    for where, axis in named:
        yield from _collectives_along(where, axis)


def _collectives_along(where: str, axis: dict[str, Any]) -> Cases:
    def gather(dim: int = 3, x: tuple[int, ...] = (1, 1, 32, 256), dtype: str = "bfloat16", rows: bool = False, memory: Any = None, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.all_gather(
            make(*x, dtype=dtype, rows=rows, memory=None if memory is None else memory(t, make)),
            dim=dim,
            **axis,
            **{n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()},
        )

    yield f"gather {where}", gather()
    yield f"gather rows {where}", gather(2)
    yield f"gather by a negative dim {where}", gather(-1)
    yield f"gather batches {where}", gather(1)
    yield f"gather 8 users {where}", gather(2, (1, 1, 8, 256))
    yield f"gather half tiles {where}", gather(3, (1, 1, 32, 48))
    yield f"gather bfloat8_b {where}", gather(dtype="bfloat8_b")
    yield f"gather int32 {where}", gather(dtype="int32")
    yield f"gather row-major data {where}", gather(rows=True)
    yield f"gather to L1 {where}", gather(memory_config="L1_MEMORY_CONFIG")
    yield f"gather shards {where}", gather(memory=lambda t, m: m.shards(32, 32, 8, 1))
    yield (
        f"gather shards to DRAM {where}",
        gather(memory=lambda t, m: m.shards(32, 32, 8, 1), memory_config="DRAM_MEMORY_CONFIG"),
    )
    yield f"gather over 9 links {where}", gather(num_links=9)
    yield (
        f"gather to one core {where}",
        lambda t, make: t.all_gather(
            make(1, 1, 32, 32), dim=3, memory_config=make.shards(32, 256, 1, 1), **axis
        ),
    )

    def scatter(dim: int = 3, x: tuple[int, ...] = (1, 1, 32, 1024), dtype: str = "bfloat16", rows: bool = False, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.reduce_scatter(
            make(*x, dtype=dtype, rows=rows),
            dim=dim,
            **axis,
            **{n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()},
        )

    yield f"scatter sums {where}", scatter()
    yield f"scatter sums by a negative dim {where}", scatter(-1)
    yield f"scatter sums of rows {where}", scatter(2, (1, 1, 256, 64))
    yield f"scatter sums of bfloat8_b {where}", scatter(dtype="bfloat8_b")
    yield f"scatter sums of float32 {where}", scatter(dtype="float32")
    yield f"scatter sums of row-major data {where}", scatter(rows=True)
    yield f"scatter sums to L1 {where}", scatter(memory_config="L1_MEMORY_CONFIG")
    yield f"scatter sums of 100 columns {where}", scatter(x=(1, 1, 32, 100))
    yield f"scatter sums of half tiles {where}", scatter(x=(1, 1, 32, 96))
    yield f"scatter sums over 9 links {where}", scatter(num_links=9)
    yield f"scatter sums over one link {where}", scatter(num_links=1)
    yield (
        f"scatter sums to shards {where}",
        lambda t, make: t.reduce_scatter(
            make(1, 1, 32, 1024), dim=3, memory_config=make.shards(32, 32, 4, 1), **axis
        ),
    )
    yield (
        f"scatter sums of shards {where}",
        lambda t, make: t.reduce_scatter(
            make(1, 1, 32, 1024, memory=make.shards(32, 128, 8, 1)), dim=3, **axis
        ),
    )

    def reduce(x: tuple[int, ...] = (1, 1, 32, 256), dtype: str = "bfloat16", memory: Any = None, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        return lambda t, make: t.all_reduce(
            make(*x, dtype=dtype, memory=None if memory is None else memory(t, make)),
            **axis,
            **{n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()},
        )

    yield f"sum {where}", reduce()
    yield f"sum bfloat8_b {where}", reduce(dtype="bfloat8_b")
    yield f"sum float32 {where}", reduce(dtype="float32")
    yield f"sum 100 columns {where}", reduce((1, 1, 32, 100))
    yield f"sum to L1 {where}", reduce(memory_config="L1_MEMORY_CONFIG")
    yield f"sum shards {where}", reduce(memory=lambda t, m: m.shards(32, 32, 8, 1))
    yield f"sum over 9 links {where}", reduce(num_links=9)

    def part(dim: int = 3, x: tuple[int, ...] = (1, 1, 32, 1024), **options: Any) -> Case:
        return lambda t, make: t.mesh_partition(
            make(*x), dim, *axis.values(), **{n: getattr(t, v) for n, v in options.items()}
        )

    yield f"part {where}", part()
    yield f"part rows {where}", part(2, (1, 1, 256, 64))
    yield f"part by a negative dim {where}", part(-1)
    yield f"part 100 columns {where}", part(x=(1, 1, 32, 100))
    yield f"part to L1 {where}", part(memory_config="L1_MEMORY_CONFIG")


def sums_in_place(axis: int, chips: int) -> Cases:
    """Sums of 8 shards along a mesh axis, into buffers that are there already."""

    def reduce(of: int = 32, room: int | None = None, cores: int = 8, to: int = 8, kind_of: str = "bfloat16", sharded: bool = True, kind: str = "WIDTH", **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            width = of * cores
            wide = room or chips * of
            every = t.CoreRangeSet({t.CoreRange(t.CoreCoord(0, 0), t.CoreCoord(6, 6))})
            return t.experimental.all_reduce_async(
                make(
                    *((1, 1, 32, width) if kind == "WIDTH" else (1, 1, 32 * cores, of)),
                    dtype=kind_of,
                    memory=make.shards(32, of, cores, 1, kind) if sharded else None,
                ),
                make(1, 1, 32, 8 * wide, dtype=kind_of, memory=make.shards(32, wide, 8, 1)),
                axis,
                make.device,
                t.create_global_semaphore(make.device, every, 0),
                memory_config=make.shards(32, width // to, to, 1),
                **{n: getattr(t, v) if isinstance(v, str) else v for n, v in options.items()},
            )

        return call

    yield "sum in place", reduce()
    yield "sum in place over one link", reduce(num_links=1)
    yield "sum bfloat8_b in place", reduce(kind_of="bfloat8_b")
    yield "sum bfloat8_b in place to bfloat16", reduce(kind_of="bfloat8_b", dtype="bfloat16")
    yield "sum in place from 4 cores", reduce(of=64, room=32 * chips, cores=4)
    yield "sum in place to 4 cores", reduce(room=64 * chips, to=4)
    yield "sum in place into too small a buffer", reduce(room=32)
    yield "sum in place of interleaved data", reduce(sharded=False)
    yield "sum in place of heights", reduce(kind="HEIGHT")


def products_beside(chips: int) -> Cases:
    """Products in slices and the scatter of their sum in one op, on the cores of three rows."""

    def multiply(slices: int = 2, kind: str = "bfloat8_b", banks: bool = True, dim: int = 3, of: str = "", at: int = 3, room: int = 1, wide: int = 256, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            k, n = 128, wide * chips
            size = {"per_core_M": 6 if of else 1, "per_core_N": -(-n // 256)}
            line = {"fuse_batch": True, "fused_activation": None, "mcast_in0": True}
            square = {"fuse_batch": False, "transpose_mcast": False}
            program = getattr(t, f"MatmulMultiCoreReuseMultiCast{of}ProgramConfig")(
                compute_with_storage_grid_size=(8, 3), in0_block_w=2, out_subblock_h=1,
                out_subblock_w=1, **size, **(line if of else square),
            )  # fmt: skip
            every = t.CoreRangeSet({t.CoreRange(t.CoreCoord(0, 0), t.CoreCoord(7, 7))})
            return t.experimental.matmul_reduce_scatter_async(
                make(1, slices, 96, k, dtype=kind),
                make(1, 1, k, n, dtype="bfloat8_b", memory=make.banks(k, n) if banks else None),
                make(1, slices, 96 // room, n, dtype=kind),
                make(1, slices, 96, n // chips, dtype=kind),
                dim,
                [t.create_global_semaphore(make.device, every, 0) for _ in range(3)],
                (0, at),
                memory_config_rs=t.DRAM_MEMORY_CONFIG,
                memory_config_mm=t.DRAM_MEMORY_CONFIG,
                program_config=program,
                compute_kernel_config=t.WormholeComputeKernelConfig(
                    math_fidelity=t.MathFidelity.HiFi2
                ),
                **{n: getattr(t.Topology, v) if n == "topology" else v for n, v in options.items()},
            )

        return call

    yield "product beside a scatter", multiply()
    yield "product of one slice beside a scatter", multiply(1)
    yield "product bfloat16 beside a scatter", multiply(kind="bfloat16")
    yield "product of spread weights beside a scatter", multiply(banks=False)
    yield "product beside a scatter over 9 links", multiply(num_links=9)
    yield "product beside a scatter of rows", multiply(dim=2)
    yield "product by lines beside a scatter", multiply(of="1D")
    yield "product on the cores of its scatter", multiply(at=2)
    yield "product beside a scatter with little room", multiply(room=3)
    yield "product beside a scatter on a line", multiply(topology="Linear")
    yield "product beside a scatter of half tiles", multiply(wide=16 * 9)


def products_behind(chips: int) -> Cases:
    """The gather of an input and its product in one op, on the cores of three rows."""

    def multiply(kind: str = "bfloat8_b", banks: bool = False, dim: int = 3, of: str = "", at: int = 3, users: int = 1, flags: int = 2, block: int = 2, high: int = 1, rows: int = 96, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            k, n, down = 128, 512, -(-rows // 96)
            size = {"per_core_M": 6 if of else down, "per_core_N": 1 if of else 2}
            line = {"fuse_batch": True, "fused_activation": None, "mcast_in0": True}
            square = {"fuse_batch": True, "transpose_mcast": False, "out_block_h": down // high}
            program = getattr(t, f"MatmulMultiCoreReuseMultiCast{of}ProgramConfig")(
                compute_with_storage_grid_size=(8, 3), in0_block_w=block, out_subblock_h=1,
                out_subblock_w=1, **size, **(line if of else square),
            )  # fmt: skip
            every = t.CoreRangeSet({t.CoreRange(t.CoreCoord(0, 0), t.CoreCoord(7, 7))})
            weight = (k * chips, n)
            return t.experimental.all_gather_matmul_async(
                make(1, users, rows // users, k, dtype=kind),
                make(
                    1, 1, *weight, dtype="bfloat8_b", memory=make.banks(*weight) if banks else None
                ),
                persistent_output_buffer=make(1, users, rows // users, k * chips, dtype=kind),
                dim=dim,
                multi_device_global_semaphore=[
                    t.create_global_semaphore(make.device, every, 0) for _ in range(flags)
                ],
                all_gather_core_grid_offset=(0, at),
                memory_config_ag=t.DRAM_MEMORY_CONFIG,
                memory_config_mm=t.DRAM_MEMORY_CONFIG,
                program_config=program,
                compute_kernel_config=t.WormholeComputeKernelConfig(
                    math_fidelity=t.MathFidelity.HiFi2
                ),
                **{
                    n: getattr({"topology": t.Topology}.get(n, t), v) if isinstance(v, str) else v
                    for n, v in options.items()
                },  # fmt: skip  # noqa: E501
            )

        return call

    yield "product behind a gather", multiply()
    yield "product bfloat16 behind a gather", multiply(kind="bfloat16")
    yield "product as bfloat16 behind a gather", multiply(dtype="bfloat16")
    yield "product behind a gather in the last row", multiply(at=7)
    yield "product behind 3 workers in the last row", multiply(at=7, num_workers_per_link=3)
    yield "product behind 4 workers in the last row", multiply(at=7, num_workers_per_link=4)
    yield "product behind 4 workers in two rows", multiply(at=6, num_workers_per_link=4)
    yield "product behind a gather on a line", multiply(topology="Linear")
    yield "product behind a gather of rows", multiply(dim=2)
    yield "product behind a gather of slices", multiply(users=3)
    yield "product behind a gather over 9 links", multiply(num_links=9)
    yield "product behind a gather with one semaphore", multiply(flags=1)
    yield "product on the cores of its gather", multiply(at=2)
    yield "product by lines behind a gather", multiply(of="1D")
    yield "product of dealt weights behind a gather", multiply(banks=True)
    yield "product in blocks behind a gather", multiply(rows=192, high=2)
    yield "product across parts behind a gather", multiply(block=8)


def from_l1() -> Cases:
    """Where results go when their operands are in L1 and nothing is said."""

    def put(make: Maker, t: Any, *shape: int, **kind: Any) -> Any:
        return make(*shape, memory=t.L1_MEMORY_CONFIG, **kind)

    yield "norm of L1", lambda t, make: t.rms_norm(put(make, t, 1, 1, 32, 576))
    yield "statistics of L1", lambda t, make: t.rms_norm_pre_all_gather(put(make, t, 1, 1, 32, 64))
    yield (
        "create heads of L1",
        lambda t, make: t.experimental.nlp_create_qkv_heads(
            put(make, t, 1, 1, 32, 320), num_heads=3, num_kv_heads=1, transpose_k_heads=False
        ),
    )
    yield "topk of L1", lambda t, make: t.topk(put(make, t, 1, 1, 32, 64))
    yield "argmax of L1", lambda t, make: t.argmax(put(make, t, 1, 1, 32, 64), dim=3)
    yield (
        "attend in L1",
        lambda t, make: t.transformer.scaled_dot_product_attention(
            put(make, t, 1, 3, 64, 64), put(make, t, 1, 1, 64, 64), put(make, t, 1, 1, 64, 64)
        ),
    )
    yield (
        "turn in L1",
        lambda t, make: t.experimental.rotary_embedding_llama(
            put(make, t, 1, 3, 32, 64), *(make(1, 1, 32, 64) for _ in "cs"), make(1, 1, 32, 32)
        ),
    )
    yield (
        "look up by ids in L1",
        lambda t, make: t.embedding(
            put(make, t, 1, 32, dtype="uint32", rows=True), make(1, 1, 100, 64, rows=True)
        ),
    )


def heads_of_all_users() -> Cases:
    """Heads of 8 users a chip, gathered over rows of 4 chips and joined on a ring of cores."""

    def join(users: int = 8, heads: int = 8, width: int = 128, high: int = 8, ranges: Any = (((1, 0), (3, 1)), ((1, 2), (2, 2))), right: bool = True, dim: int = 1, **options: Any) -> Case:  # fmt: skip  # noqa: E501
        def call(t: Any, make: Maker) -> Any:
            def shards(parts: Any, rows: int, columns: int, kind: str = "HEIGHT") -> Any:
                cores = [t.CoreRange(t.CoreCoord(*a), t.CoreCoord(*b)) for a, b in parts]
                return t.create_sharded_memory_config(
                    (rows, columns), t.CoreRangeSet(cores), getattr(t.ShardStrategy, kind),
                    t.ShardOrientation.ROW_MAJOR, use_height_and_width_as_shard_shape=True,
                )  # fmt: skip

            beside = [(x, y) for y in (0, 1, 2, 4, 5, 6, 7, 9) for x in (5, 6)]
            beside += [(x, y) for y in (9, 5, 4, 0) for x in (1, 2)]
            ring = [(core, core) for core in (beside if right else beside[::-1])]
            every = t.CoreRangeSet({t.CoreRange(t.CoreCoord(0, 0), t.CoreCoord(6, 9))})
            room = shards((((1, 0), (3, 9)), ((5, 0), (6, 0))), heads, width)
            return t.experimental.all_gather_concat(
                make(1, users, heads, width, rows=True, memory=shards(ranges, high, width)),
                make(1, 32, heads, width, rows=True, memory=room),
                dim,
                cluster_axis=1,
                mesh_device=make.device,
                multi_device_global_semaphore=t.create_global_semaphore(make.device, every, 0),
                num_heads=8,
                memory_config=shards(ring, 32, 64, "WIDTH"),
                **{n: getattr(t.Topology, v) if n == "topology" else v for n, v in options.items()},
            )

        return call

    yield "join heads of all users", join(topology="Ring")
    yield "join heads of all users over 3 links", join(num_links=3, topology="Ring")
    yield "join heads of all users on a line", join(topology="Linear")
    yield "join heads in shards of a tile row", join(high=32)
    yield "join heads from 8 other cores", join(ranges=(((1, 0), (1, 7)),))
    yield "join heads of half the width", join(width=64)
    yield "join heads where nobody waits for them", join(right=False)


# What the emulator refuses and the wheel does not, and why
STRICTER = {
    "turn by a shorter table": "silicon reads what lies behind the table",
    "attend to rows at a list": "positions are tensors in every model here",
    "look up lists in lists": "the wheel's result has no room for all lists",
    "argmax over all": "no model needs it",
    "product beside a scatter of half tiles": "tiles of two chips are no sums of one",
    "product beside a scatter with little room": "silicon writes what lies behind the room",
    "product beside a scatter on a line": "the program is a ring's, with neighbours that are not",
    "product by lines behind a gather": "no plan makes one",
    "product of dealt weights behind a gather": "silicon multiplies parts with others' rows",
    "product in blocks behind a gather": "silicon waits for parts that do not come again",
    "product across parts behind a gather": "silicon multiplies what has not come",
    "join heads where nobody waits for them": "silicon would wait for ever",
    "gather 8 users along no axis of 8x4": "the wheel broadcasts where tiles are not whole",
    "gather half tiles along no axis of 8x4": "the wheel broadcasts where tiles are not whole",
}


def cases(system: str) -> dict[str, Case]:
    """The calls made on one product, by name."""
    if system == "T3K":
        return dict(
            [*collectives((1, 8)), *sums_in_place(1, 8), *products_beside(8), *products_behind(8)]
        )
    if system == "TG":
        return dict([*collectives((8, 4)), *sums_in_place(0, 8), *heads_of_all_users()])
    if system == "P150":  # its grid is 11 wide, so what lies on a core per user differs
        return dict([*heads(), *joined_heads(), *rotations()])
    parts = (norms, distributed_norms, heads, joined_heads, rotations, caches, attention, decode_attention, lookups, from_l1)  # fmt: skip  # noqa: E501
    return dict(case for part in parts for case in part())


def outcomes(ttnn: Any, device: Any, system: str) -> dict[str, str]:
    """What became of every case: placements, or a refusal."""
    found = {}
    for name, call in cases(system).items():
        try:
            result = call(ttnn, Maker(ttnn, device))
            parts = result if isinstance(result, (tuple, list)) else [result]
            found[name] = "; ".join(describe(part) for part in parts)
        except Exception as error:  # any refusal: the wheel's have several types
            found[name] = f"refused: {type(error).__name__}: {error}"
    return found
