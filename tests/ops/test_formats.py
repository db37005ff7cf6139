"""Number formats against the wheel's own conversion, and what holds for any conversion."""

from __future__ import annotations

import pytest
import torch

from backends.emulator.api.types import DataType
from backends.emulator.numerics.formats import keep_significant_bits, round_to, to_format
from tests.ops.wheel import BLOCK_TYPES, answers, numbers

BLOCKS = {name: DataType[name.upper()] for name in BLOCK_TYPES}


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("kind", numbers())
def test_host_conversion_equals_the_wheels_bit_for_bit(kind: str, name: str) -> None:
    expected = answers()["formats"][f"{kind} as {name}"]
    values = numbers()[kind]
    whole, few = (to_format(part, BLOCKS[name]) for part in (values, values[:, :, :8]))
    assert whole.dtype is few.dtype is torch.bfloat16
    assert torch.equal(whole.float().view(torch.int32), expected.view(torch.int32))
    assert torch.equal(few.view(torch.int16), whole[:, :, :8].view(torch.int16))


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("kind", ["bfloat16", "ties", "near saturation"])
def test_results_on_the_device_round_like_host_values(kind: str, name: str) -> None:
    values = numbers()[kind].bfloat16()
    assert torch.equal(round_to(values, BLOCKS[name]), to_format(values, BLOCKS[name]))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_transposed_weight_rounds_along_its_rows_and_stays_transposed(name: str) -> None:
    stored = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    rounded = to_format(stored.T, BLOCKS[name])
    assert rounded.T.is_contiguous()
    assert torch.equal(rounded, to_format(stored.T.contiguous(), BLOCKS[name]))


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("width", [1, 15, 17, 40])
def test_a_width_that_is_no_multiple_of_16_rounds_as_if_padded_with_zeros(
    width: int, name: str
) -> None:
    values = torch.randn(8, width, generator=torch.Generator().manual_seed(2))
    padded = torch.nn.functional.pad(values, (0, -width % 16))
    for convert in (to_format, round_to):
        whole = convert(padded, BLOCKS[name])
        assert torch.equal(convert(values, BLOCKS[name]), whole[:, :width])


def test_rounding_twice_changes_nothing() -> None:
    for dtype in BLOCKS.values():
        once = to_format(numbers()["wide exponents"], dtype)
        assert torch.equal(to_format(once, dtype), once)


def test_significant_bits_are_cut_off_and_not_rounded() -> None:
    ones = torch.tensor([1.9921875, -1.9921875, 0.0], dtype=torch.bfloat16)  # eight ones
    assert keep_significant_bits(ones, 7).tolist() == [1.984375, -1.984375, 0.0]
    assert keep_significant_bits(ones, 5).tolist() == [1.9375, -1.9375, 0.0]
    assert keep_significant_bits(ones.float() + 2**-20, 11)[0] == 1.9921875
