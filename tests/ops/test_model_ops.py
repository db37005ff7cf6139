"""Model ops are placed and refused as the wheel places and refuses them on mock chips."""

from __future__ import annotations

import pytest

from backends.mesh import open_mesh
from tests.ops import model_op_cases
from tests.ops.emulated import ttnn
from tests.ops.wheel_model_ops import PRODUCTS, answers

# Words by which a user knows what is wrong; both sides use them
WORDS = {
    "decode turn of interleaved cosines": "must be HEIGHT_SHARDED",
    "decode heads of bfloat8_b": "Unsupported data format",
    "decode heads of 33 users": "Unsupported input shape",
    "join decode heads in DRAM": "must be sharded",
    "turn bfloat8_b": "All input tensors must have dtype = bfloat16",
    "update pages at uint32 positions": "Expected update_idxs to have datatype INT32",
    "update pages by a uint32 table": "page table to have datatype INT32",
    "update pages by interleaved data": "Expect input_tensor to be sharded",
    "update pages by bfloat8_b": "must be FLOAT32 or BFLOAT16",
    "fill pages by another type": "must match cache tensor dtype",
    "fill more pages than the table has": "must fit in max_num_blocks_per_seq",
    "attend over more keys": "Causal SDPA requires Q and K to have the same sequence length",
    "attend over pages from an odd place": "must be a multiple of q_chunk_size",
    "attend over pages by any scale": "incompatible function arguments",
    "attend to pages at uint32 positions": "Expect cur_pos to be INT32",
    "attend to pages nowhere": "Must have cur_pos tensor",
    "sharded norm with wide blocks": "block_w (2) must equal to K (in tiles)",
    "norm, weight in one long row": "Gamma's last padded dim needs to equal tile width",
    "draw out of 96": "power-of-2 number of tiles",
    "look up by int32": "Input must be UINT32 or BFLOAT16",
    "gather along axis 0 of 1x8": "will only work for num_devices > 1, got 1",
    "scatter sums over 9 links along axis 1 of 1x8": "Requested link index",
    "product by lines beside a scatter": "Needs to be 2D Multicast",
    "product on the cores of its scatter": "another circular buffer already exists",
    "product behind a gather on a line": "linear is not support when using fused for all-gather",
    "product behind a gather of slices": "requires input tensor to have batch size of 1",
    "product behind a gather with one semaphore": "requires 2 semaphores",
    "product on the cores of its gather": "another circular buffer already exists",
    "product behind 4 workers in the last row": "off the worker grid",
    "sum in place into too small a buffer": "must be large enough to hold the intermediate tensor",
    "sum in place of interleaved data": "Unsupported memory layout for input tensor",
}


def ours(product: str) -> dict[str, str]:
    with open_mesh(product, from_column=product == "TG") as mesh:
        return model_op_cases.outcomes(ttnn, mesh, product)


@pytest.mark.parametrize("product", PRODUCTS)
def test_results_lie_where_the_wheel_puts_them_or_both_refuse(product: str) -> None:
    theirs = answers(product, ahead=PRODUCTS)["outcomes"]
    wrong = []
    for name, found in ours(product).items():
        expected = "refused" if name in model_op_cases.STRICTER else theirs[name]
        refused = expected.startswith("refused")
        # a refusal is ours: TT_FATAL, or a call that the binding would not take
        fits = found.startswith(("refused: RuntimeError: TT_FATAL", "refused: TypeError"))
        if not (fits if refused else found == expected):
            wrong.append(f"{name}: expected {expected}, found {found}")
    assert not wrong, "\n".join(wrong)


def test_refusals_say_what_the_wheel_says() -> None:
    theirs, found = (
        {name: text for product in ("N150", "T3K") for name, text in side(product).items()}
        for side in (lambda product: answers(product)["outcomes"], ours)
    )
    for name, words in WORDS.items():
        assert words in theirs[name], f"the wheel on {name}"
        assert words in found[name], f"the emulator on {name}"
