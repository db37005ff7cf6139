"""The device's sampler: however rows of logits are cut and folded, the same tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from backends.device_specs import SPECS
from backends.mesh import open_mesh
from models.collectives import GridMesh, Links
from models.layers.sampler import DeviceSampler, SamplingInputs
from models.plans.matmul import by_rows
from models.plans.target import Target
from models.precision import ModelPrecision
from models.sharding import TILE, Sharding, searched_parts, searched_width
from tests.ops.emulated import get, put, ttnn
from tests.tiny_models import tiny_config

VOCAB = 16_300  # padded: what is drawn must lie before the padding
ODD = 19_900  # padded to 20,480 = 16,384 + 4,096 columns of one chip, and halves of both of two


def _tokens(
    mesh: Any, users: int, *, fold: bool, greedy: bool, vocab: int = VOCAB
) -> tuple[list[int], int]:
    sizes = Sharding(dataclasses.replace(tiny_config("llama"), vocab_size=vocab), *mesh.shape)
    sampler = DeviceSampler(mesh, sizes, users, fold=fold)
    logits = torch.randn(1, 1, users, sizes.vocab, generator=torch.Generator().manual_seed(users))
    logits[..., 5] = logits[..., 3000] = 6  # equals: the first counts

    def each(value: float, dtype: Any) -> Any:
        values = torch.full((users,), value)
        return put(mesh, values.int() if dtype is ttnn.uint32 else values, dtype, rows=True)

    seeds = None if greedy else put(mesh, torch.arange(users).int(), ttnn.uint32, rows=True)
    inputs = SamplingInputs(
        each(1 if greedy else 32, ttnn.uint32), each(1.0, ttnn.bfloat16),
        each(0.5, ttnn.bfloat16), seeds,
    )  # fmt: skip
    out = put(mesh, torch.zeros(1, 1, 1, users).int(), ttnn.uint32, rows=True)
    sampler(put(mesh, logits, dims=(None, 3)), inputs, out)
    return get(out).flatten().int().tolist(), sampler.folds


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    ("device", "users", "folds"), [("N150", 1, 8), ("N150", 8, 4), ("N150", 32, 1), ("N300", 1, 4)]
)
def test_folded_rows_give_the_tokens_of_whole_rows(
    device: str, users: int, folds: int, greedy: bool
) -> None:
    with open_mesh(device) as mesh:
        found, cut = _tokens(mesh, users, fold=True, greedy=greedy)
        wanted, whole = _tokens(mesh, users, fold=False, greedy=greedy)
    assert (cut, whole) == (folds, 1)
    assert found == wanted and max(found) < VOCAB
    if greedy:
        assert found == [5] * users
    else:
        assert users == 1 or len(set(found)) > 1


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    ("device", "users", "folds"), [("N150", 32, 1), ("N150", 1, 4), ("N300", 1, 2), ("T3K", 32, 1)]
)
def test_rows_of_several_powers_of_two_give_the_tokens_of_whole_rows(
    device: str, users: int, folds: int, greedy: bool
) -> None:
    with open_mesh(device) as mesh:
        found, cut = _tokens(mesh, users, fold=True, greedy=greedy, vocab=ODD)
        wanted, _ = _tokens(mesh, users, fold=False, greedy=greedy, vocab=ODD)
    assert cut == folds and found == wanted and max(found) < ODD


def test_padding_is_never_drawn_where_columns_of_chips_sum_their_logits() -> None:
    """It is masked between the scatter of the sum and the gather, on every chip's columns."""
    users, generator = 32, torch.Generator().manual_seed(0)
    config = dataclasses.replace(tiny_config("llama"), vocab_size=VOCAB)
    with open_mesh("TG") as mesh:
        sizes = Sharding(config, *mesh.shape)
        layer = ModelPrecision.preset("performance", config).layer(0)
        target = Target(SPECS["TG"], mesh.arch(), sizes, layer, batch=users)
        ccl = GridMesh(target, Links(num_links=SPECS["TG"].links, ring=True), mesh)
        sampler = DeviceSampler(mesh, sizes, users, ccl=ccl)
        parts = torch.randint(-9, 9, (sizes.cols, 1, users, sizes.vocab), generator=generator)
        parts[..., VOCAB:] = 20
        memory = by_rows(sizes.local_vocab, sizes.local_vocab // TILE, SPECS["TG"])
        logits = ccl.sum_logits(put(mesh, parts.float(), dims=(3, 0), memory=memory))
        each = {ttnn.uint32: torch.ones(users).int(), ttnn.bfloat16: torch.ones(users)}
        k, one = (put(mesh, values, dtype, rows=True) for dtype, values in each.items())
        out = put(mesh, torch.zeros(1, 1, 1, users).int(), ttnn.uint32, rows=True)
        sampler(logits, SamplingInputs(k, one, one), out)
        found = get(out).flatten().int().tolist()
    assert sizes.vocab > VOCAB
    assert found == parts.sum(dim=0)[0, :, :VOCAB].argmax(-1).tolist()


@pytest.mark.parametrize("chips", [1, 2, 4, 8])
@pytest.mark.parametrize("vocab", [128256, 151936, 32000, 32064, 100352, 262144, 49152])
def test_many_cores_search_every_part_of_a_known_vocabulary(vocab: int, chips: int) -> None:
    """What ttnn.topk asks of a width; any other is gone through by one core."""
    columns = -(-vocab // chips)
    width = searched_width(columns)
    parts = searched_parts(width)
    assert columns <= width == sum(parts) <= 1.08 * columns
    assert all(part & (part - 1) == 0 and 1024 <= part < 65536 for part in parts)
