"""Attention: goldens, and the ways of computing the same thing against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from backends.emulator.numerics.formats import keep_significant_bits
from backends.mesh import open_mesh
from backends.op_record import operand_bytes, record_ops
from tests.ops.emulated import EXACT, ROUNDED, get, put, put_heads, ttnn
from tests.ops.golden_cases import operand
from tests.ops.model_golden_cases import (
    PAGES,
    POSITIONS,
    SCALE,
    SIZE,
    START,
    USERS,
    WINDOW,
    H,
    K,
    W,
    operands,
)
from tests.ops.wheel_model_ops import answers

OPERANDS = operands()
whole = ttnn.transformer.scaled_dot_product_attention
chunked = ttnn.transformer.chunked_scaled_dot_product_attention
paged = ttnn.transformer.paged_scaled_dot_product_attention_decode
dense = ttnn.transformer.scaled_dot_product_attention_decode
SCALED = {"scale": SCALE, "compute_kernel_config": EXACT}
IN_WINDOW = {"sliding_window_size": WINDOW}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    with open_mesh("N150") as device:
        yield device


def on(mesh: Any, *names: str) -> list[Any]:
    return [put(mesh, OPERANDS[name]) for name in names]


def step(mesh: Any) -> list[Any]:
    """Query, keys, values and page table of a decode step."""
    return [put_heads(mesh, OPERANDS["q_decode"]), *on(mesh, "keys", "values", "table")]


def test_values_equal_the_wheels_golden_functions(mesh: Any) -> None:
    prompt = on(mesh, "q", "k", "v")
    chunk = [*on(mesh, "q", "keys", "values"), put(mesh, OPERANDS["table"][:1])]
    at = put(mesh, torch.tensor([START], dtype=torch.int32))
    wide = put(
        mesh, torch.nn.functional.pad(OPERANDS["table"][:1], (0, -OPERANDS["table"].shape[1] % 8))
    )
    position = {"cur_pos_tensor": put(mesh, POSITIONS)}
    rows = [put_heads(mesh, OPERANDS["q_decode"]), *on(mesh, "rows", "row_values")]
    found = {
        "causal": whole(*prompt, is_causal=True, **SCALED),
        "all": whole(*prompt, is_causal=False, **SCALED),
        "masked": whole(*prompt, is_causal=False, attn_mask=on(mesh, "mask")[0], **SCALED),
        "window": whole(*prompt, **IN_WINDOW, **SCALED),
        "chunk": chunked(*chunk, START, **SCALED),
        "chunk from a tensor": chunked(*chunk[:3], wide, chunk_start_idx_tensor=at, **SCALED),
        "chunk in a window": chunked(*chunk, START, **IN_WINDOW, **SCALED),
        "paged": paged(*step(mesh), **position, **SCALED),
        "paged in a window": paged(*step(mesh), **position, **IN_WINDOW, **SCALED),
        "dense": dense(*rows, **position, **SCALED),
    }
    goldens = answers()["goldens"]
    for name, out in found.items():
        torch.testing.assert_close(
            get(out), goldens[name], **ROUNDED, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_idle_users_get_zeros(mesh: Any) -> None:
    out = get(paged(*step(mesh), cur_pos_tensor=put(mesh, POSITIONS), **SCALED))[0]
    idle = POSITIONS < 0
    assert not out[idle].any() and out[~idle].all()


@pytest.mark.parametrize("window", [None, 40])
def test_pages_in_any_order_give_what_a_dense_row_gives(mesh: Any, window: int | None) -> None:
    given = {"cur_pos_tensor": put(mesh, POSITIONS), "sliding_window_size": window, **SCALED}
    q, keys, values, table = step(mesh)
    rows = [
        put(mesh, OPERANDS[name][OPERANDS["table"].long()].transpose(1, 2).flatten(2, 3))
        for name in ("keys", "values")
    ]
    # pages are a whole number of tiles, rows may end anywhere: sums come in another order
    torch.testing.assert_close(
        get(paged(q, keys, values, table, **given)), get(dense(q, *rows, **given)), **ROUNDED
    )


@pytest.mark.parametrize("kind", ["bfloat16", "bfloat8_b"])
def test_chunks_give_what_the_whole_prompt_gives(mesh: Any, kind: str) -> None:
    length, chunk, dtype = 160, 64, getattr(ttnn, kind)
    q, k, v = (put(mesh, operand(1, n, length, W, seed=20 + n), dtype) for n in (H, K, K))
    blocks = length // SIZE
    table = put(mesh, torch.randperm(blocks).view(1, -1).to(torch.int32))
    caches = []
    for tensor in (k, v):
        cache = ttnn.zeros([blocks, K, SIZE, W], dtype, ttnn.TILE_LAYOUT, mesh)
        caches.append(ttnn.experimental.paged_fill_cache(cache, tensor, table, batch_idx=0))
    parts = [
        get(
            chunked(
                ttnn.slice(q, [0, 0, first, 0], [1, H, min(length, first + chunk), W]),
                *caches,
                table,
                first,
                **SCALED,
            )  # fmt: skip
        )
        for first in range(0, length, chunk)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=2), get(whole(q, k, v, **SCALED)), **ROUNDED)


def test_a_decode_step_gives_the_last_row_of_prefill(mesh: Any) -> None:
    length = 77
    q, k, v = (operand(1, n, length, W, seed=30 + n) for n in (H, K, K))
    prompt = get(whole(*(put(mesh, x) for x in (q, k, v)), **SCALED))
    rows = [torch.nn.functional.pad(x, (0, 0, 0, 96 - length)) for x in (k, v)]
    out = dense(
        put_heads(mesh, q[:, None, :, -1]),
        *(put(mesh, row) for row in rows),
        cur_pos_tensor=put(mesh, torch.tensor([length - 1], dtype=torch.int32)),
        **SCALED,
    )
    torch.testing.assert_close(get(out)[0, 0], prompt[0, :, -1], **ROUNDED)


def test_long_prompts_are_computed_in_blocks_alike(mesh: Any, monkeypatch: Any) -> None:
    from backends.emulator.ops import attention

    prompt = on(mesh, "q", "k", "v")
    once = get(whole(*prompt, **IN_WINDOW, **SCALED))
    monkeypatch.setattr(attention, "_MASK_ELEMENTS", 0)
    torch.testing.assert_close(get(whole(*prompt, **IN_WINDOW, **SCALED)), once, **ROUNDED)


def test_groups_of_users_give_what_all_at_once_give(mesh: Any, monkeypatch: Any) -> None:
    from backends.emulator.loops import native
    from backends.emulator.ops import attention_decode

    monkeypatch.setattr(native, "library", lambda: None)  # its loops know no groups
    given = {"cur_pos_tensor": put(mesh, POSITIONS), **SCALED}
    once = get(paged(*step(mesh), **given))
    monkeypatch.setattr(attention_decode, "GROUP", 1)
    torch.testing.assert_close(get(paged(*step(mesh), **given)), once, **ROUNDED)


def test_fidelity_limits_the_bits_of_queries_keys_and_values(mesh: Any) -> None:
    position = {"cur_pos_tensor": put(mesh, POSITIONS), "scale": SCALE}

    def run(fidelity: str, q_bits: int, kv_bits: int) -> torch.Tensor:
        q = put_heads(mesh, keep_significant_bits(OPERANDS["q_decode"].bfloat16(), q_bits).float())
        kv = [
            put(mesh, keep_significant_bits(OPERANDS[name].bfloat16(), kv_bits).float())
            for name in ("keys", "values")
        ]
        kernel = ttnn.WormholeComputeKernelConfig(
            math_fidelity=getattr(ttnn.MathFidelity, fidelity)
        )
        table = put(mesh, OPERANDS["table"])
        return get(paged(q, *kv, table, compute_kernel_config=kernel, **position))

    assert torch.equal(run("LoFi", 8, 8), run("HiFi4", 7, 5))
    assert torch.equal(run("HiFi2", 8, 8), run("HiFi4", 7, 8))
    assert not torch.equal(run("HiFi2", 8, 8), run("HiFi4", 8, 8))


def test_replays_attend_up_to_the_positions_of_that_moment(mesh: Any) -> None:
    positions = put(mesh, POSITIONS)
    operand_step = step(mesh)
    trace = ttnn.begin_trace_capture(mesh, cq_id=0)
    out = paged(*operand_step, cur_pos_tensor=positions, **SCALED)
    ttnn.plus_one(positions, skip_negative_entries=True)
    ttnn.end_trace_capture(mesh, trace, cq_id=0)
    for ahead in range(3):
        ttnn.execute_trace(mesh, trace, cq_id=0, blocking=True)
        now = torch.where(POSITIONS < 0, -1, POSITIONS + ahead)
        eager = paged(*operand_step, cur_pos_tensor=put(mesh, now), **SCALED)
        assert torch.equal(get(out), get(eager))


def test_columns_of_a_mesh_attend_for_users_of_their_own(mesh: Any) -> None:
    users, columns = 2, 4
    q = operand(1, users * columns, H, W, seed=40)
    positions = torch.tensor([3, -1, 40, 41, 0, 127, -1, 90], dtype=torch.int32)
    table = torch.cat([OPERANDS["table"], OPERANDS["table"][:3]])
    on_one = paged(
        put_heads(mesh, q), *on(mesh, "keys", "values"), put(mesh, table),
        cur_pos_tensor=put(mesh, positions), **SCALED,
    )  # fmt: skip
    with open_mesh("T3K_2x4") as grid:
        out = paged(
            put_heads(grid, q, dims=(None, 1)),
            *on(grid, "keys", "values"),
            put(grid, table, dims=(None, 0)),
            cur_pos_tensor=put(grid, positions, dims=(None, 0)),
            **SCALED,
        )
        found = torch.cat([get(out, (0, column)) for column in range(columns)], dim=1)
    torch.testing.assert_close(found, get(on_one), **ROUNDED)


def test_a_record_says_what_a_performance_model_needs(mesh: Any) -> None:
    with record_ops() as records:
        paged(*step(mesh), cur_pos_tensor=put(mesh, POSITIONS), **SCALED)
    (record,) = records
    known = {
        "users": USERS, "context": PAGES * SIZE, "heads": H, "kv_heads": K, "head_dim": W,
        "block_size": SIZE, "page_blocks": PAGES,
    }  # fmt: skip
    assert known.items() <= record.attributes.items()
    tiles = USERS * PAGES * K * W // 32  # of a full context, keys or values
    assert record.cost is not None and record.cost.cached_bytes == 2 * tiles * 2048
    outer = operand_bytes((record.inputs[0], *record.outputs), "DRAM")  # queries, results
    assert record.cost.dram_bytes == record.cost.cached_bytes + outer
