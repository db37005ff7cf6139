"""Calls of model ops that have a golden function in the wheel, and the operands for both sides.

Shapes as in the emulator's ops: H query and K key heads of width W, pages of `size` positions.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.golden_cases import operand

H, K, W = 6, 2, 64
LENGTH, START, SIZE = 64, 64, 32
WINDOW = 40
SCALE = 0.125
MESH = (2, 4)
POSITIONS = torch.tensor([100, -1, 0, 31, 32], dtype=torch.int32)
USERS, PAGES = len(POSITIONS), 4
EPSILON = 1e-5
ALONG = (None, 0, 1)  # mesh axes of collectives


def operands() -> dict[str, torch.Tensor]:
    """Seeded operands that bfloat16 (and the page tables' int32) hold exactly."""
    pages = torch.randperm(USERS * PAGES, generator=torch.Generator().manual_seed(1))
    logits = operand(1, 1, 8, 512, seed=11)
    logits[..., 100:400] = logits[..., 0:300]  # equal values
    return {
        "x": operand(1, 1, 32, 576, seed=1) * 3,
        "weight": operand(1, 1, 18, 32, seed=2),
        "bias": operand(1, 1, 18, 32, seed=14),
        "mask": torch.where(operand(1, 1, LENGTH, LENGTH, seed=15) > 0, 0.0, -1e9)
        .bfloat16()
        .float(),
        "q": operand(1, H, LENGTH, W, seed=3),
        "k": operand(1, K, LENGTH, W, seed=4),
        "v": operand(1, K, LENGTH, W, seed=5),
        "keys": operand(USERS * PAGES, K, SIZE, W, seed=6),
        "values": operand(USERS * PAGES, K, SIZE, W, seed=7),
        "table": pages.view(USERS, PAGES).to(torch.int32),
        "positions": POSITIONS,
        "q_decode": operand(1, USERS, H, W, seed=8),
        "rows": operand(USERS, K, PAGES * SIZE, W, seed=9),
        "row_values": operand(USERS, K, PAGES * SIZE, W, seed=10),
        "logits": logits,
        "ids": torch.tensor([[5, 0, 99, 5]], dtype=torch.int32),
        "vocabulary": operand(1, 1, 100, 64, seed=12),
        "chips": operand(*MESH, 1, 1, 32, 64, seed=13),  # a tensor per chip
    }


def from_wheel(ttnn: Any) -> dict[str, torch.Tensor]:
    """What the golden functions give."""
    o = operands()

    def golden(path: str) -> Any:
        found = ttnn
        for part in path.split("."):
            found = getattr(found, part)
        return ttnn.get_golden_function(getattr(found, "wheel", found))

    sdpa = golden("transformer.scaled_dot_product_attention")
    chunked = golden("transformer.chunked_scaled_dot_product_attention")
    paged = golden("transformer.paged_scaled_dot_product_attention_decode")
    dense = golden("transformer.scaled_dot_product_attention_decode")
    stats = golden("rms_norm_pre_all_gather")(o["x"], dtype=ttnn.float32)
    chunk = (o["q"], o["keys"], o["values"], o["table"][:1])
    step = {"cur_pos_tensor": o["positions"], "scale": SCALE}
    at = torch.tensor([START], dtype=torch.int32)
    topk = golden("topk")(o["logits"], k=32, dim=-1)
    found = {
        "norm": golden("rms_norm")(o["x"], epsilon=EPSILON, weight=o["weight"]),
        "norm by statistics": golden("rms_norm_post_all_gather")(
            o["x"], stats, epsilon=EPSILON, weight=o["weight"].reshape(1, 1, 1, -1)
        ),
        "layer norm": golden("layer_norm")(
            o["x"].bfloat16().float(),
            epsilon=EPSILON,
            weight=o["weight"].flatten(),
            bias=o["bias"].flatten(),
        ),
        "masked": sdpa(o["q"], o["k"], o["v"], is_causal=False, attn_mask=o["mask"], scale=SCALE),
        "causal": sdpa(o["q"], o["k"], o["v"], is_causal=True, scale=SCALE),
        "all": sdpa(o["q"], o["k"], o["v"], is_causal=False, scale=SCALE),
        "window": sdpa(o["q"], o["k"], o["v"], scale=SCALE, sliding_window_size=WINDOW),
        "chunk": chunked(*chunk, START, scale=SCALE),
        "chunk from a tensor": chunked(*chunk, chunk_start_idx_tensor=at, scale=SCALE),
        "chunk in a window": chunked(*chunk, START, scale=SCALE, sliding_window_size=WINDOW),
        "paged": paged(o["q_decode"], o["keys"], o["values"], o["table"], **step),
        "paged in a window": paged(
            o["q_decode"], o["keys"], o["values"], o["table"], sliding_window_size=WINDOW, **step
        ),
        "dense": dense(o["q_decode"], o["rows"], o["row_values"], **step),
        "topk": topk[0],
        "argmax": golden("argmax")(o["logits"], dim=-1),
        "embedding": golden("embedding")(o["ids"], o["vocabulary"][0, 0]),
    }
    chips = list(o["chips"].flatten(0, 1))
    mesh = {"_ttnn_golden_mesh_shape": MESH, "_ttnn_golden_mesh_shard_dims": (0, 1)}
    for axis in ALONG:
        where = {"cluster_axis": axis, **mesh}
        for name in ("all_gather", "reduce_scatter"):
            if axis is not None or name != "all_gather":
                found[f"{name} along {axis}"] = golden(name)(chips, 3, **where)
        found[f"all_reduce along {axis}"] = golden("all_reduce")(chips, **where)
    return {name: value.float() for name, value in found.items()}
