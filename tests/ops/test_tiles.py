"""Weights in tiles: packed ones are the weights, whoever reads them."""

from __future__ import annotations

import pytest
import torch

from backends.emulator.api.types import DataType
from backends.emulator.numerics import at_once, formats, tiles

every_build = pytest.mark.usefixtures("build")


@every_build
@pytest.mark.parametrize(
    ("dtype", "bits"), [("BFLOAT8_B", None), ("BFLOAT8_B", 5), ("BFLOAT4_B", 3)]
)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 29])
def test_packed_weights_multiply_as_unpacked_ones_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: str, bits: int | None, rows: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 96, generator=generator)
    weight *= (torch.randn(64, 96, generator=generator) * 3 - 9).exp2()
    weight[:, 7], weight[3, :16], weight[5] = -0.0, 2.0**-100, 5.0
    matrix = formats.to_format(weight, DataType[dtype]).mT.contiguous()[None, None]
    x = torch.randn(1, rows, 64, generator=generator).bfloat16()
    x[:, :, 3], x[:, 0, 5] = 0, 2.0**-120
    packed = tiles.store_of(matrix, bits)
    monkeypatch.setattr(tiles, "_packed", lambda *_: None)
    whole = tiles.store_of(matrix, bits)
    assert packed.words is None and whole.words is not None
    assert packed.nbytes <= whole.nbytes * (0.3125 if dtype == "BFLOAT4_B" else 0.5625)
    found = [
        at_once.multiply(x, tiles.Tiles(store, [(None, None)]), (1, 1, rows, 96), 0, True)
        for store in (packed, whole)
    ]
    assert torch.equal(*[each.view(torch.int16) for each in found]) and found[0].any()


@every_build
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize(("different", "depth"), [(1, 64), (2, 64), (5, 64), (2, 44)])
def test_each_row_of_a_product_is_that_of_a_row_alone(
    rows: int, different: int, depth: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1, 2, depth, 160, generator=generator) / 8  # five tiles, of two places
    weight[:, 1, :, 32:64] = 0
    matrices = formats.to_format(weight, DataType.BFLOAT8_B).mT.contiguous()
    own = tiles.Tiles(tiles.store_of(matrices), [(None, 0), (None, 1)])
    x = torch.randn(2, rows, depth, generator=generator).bfloat16()
    x[:, different:] = x[:, different - 1 : different]  # idle users are alike
    x[1, -1] += 1
    found = at_once.multiply(x, own, (1, 2, rows, 160), 0, True)
    for row in range(rows):
        alone = at_once.multiply(x[:, row : row + 1], own, (1, 2, 1, 160), 0, True)
        assert torch.equal(found[:, :, row], alone[:, :, 0])
    expected = torch.matmul(x.float(), matrices[0].float().mT)
    torch.testing.assert_close(found[0].float(), expected, rtol=2**-7, atol=1e-4)


@every_build
def test_weights_of_more_bits_are_not_packed() -> None:
    matrix = torch.randn(1, 1, 32, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert tiles.store_of(matrix).mantissas is None
    for value in (torch.inf, 2.0**100):
        assert tiles.store_of(torch.full_like(matrix, value)).mantissas is None
        assert tiles.packed(torch.full_like(matrix, value)[:, :, None, None]) is None


@every_build
@pytest.mark.parametrize("dtype", ["BFLOAT8_B", "BFLOAT4_B"])
def test_any_op_of_torch_sees_the_values_of_a_packed_weight(dtype: str) -> None:
    weight = torch.randn(2, 3, 1, 1, 96, 64, generator=torch.Generator().manual_seed(1))
    weight[1, :, :, :, 50:], weight[:, 2] = 0, weight[:, 1]  # padding, and replicas
    weight[0, 0, ..., :32] = 0
    whole = formats.to_format(weight.mT.contiguous().mT, DataType[dtype])
    own = tiles.packed(whole)
    assert own is not None and (own.shape, own.stride()) == (whole.shape, whole.stride())
    assert torch.equal(own, whole) and torch.equal(own[1, 2] * 2, whole[1, 2] * 2)
    assert torch.equal(own.clone().view(torch.int16), whole.view(torch.int16))
    assert own.store.nbytes < whole.nbytes / 2  # and zeros are not kept, nor replicas
    assert own.to("cpu") is own and own.float().sum() == whole.float().sum()
