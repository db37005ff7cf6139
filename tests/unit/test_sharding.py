"""Head layouts and padded sizes: nothing lost or doubled, and every rule of the kernels kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.registry import load_config, model_names
from models.sharding import TILE, Sharding, lay_out_heads
from models.weights import pad_to, pick_heads
from tests.tiny_models import tiny_config

HEADS = [(9, 3), (14, 2), (28, 4), (40, 8), (32, 8), (64, 8), (12, 12), (5, 1), (32, 32), (24, 8)]


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("shards", [1, 2, 4, 8, 32])
def test_every_query_head_sits_once_beside_its_own_key_value_head(
    heads: int, kv_heads: int, shards: int
) -> None:
    layout = lay_out_heads(heads, kv_heads, shards)
    real = [head for row in layout.query for head in row if head is not None]
    assert sorted(real) == list(range(heads))
    for query, key_value in zip(layout.query, layout.key_value, strict=True):
        assert len(query) % len(key_value) == 0
        group = len(query) // len(key_value)
        for place, head in enumerate(query):
            if head is not None:
                assert key_value[place // group] == head // (heads // kv_heads)


@pytest.mark.parametrize("mesh", [(1, 1), (1, 2), (1, 8), (8, 4)])
@pytest.mark.parametrize("model", model_names())
def test_every_local_size_is_whole_tiles_and_holds_the_model(
    model: str, mesh: tuple[int, int]
) -> None:
    sizes = Sharding(load_config(model), *mesh)
    config = sizes.config
    for local in ("local_residual", "local_dim", "local_hidden", "local_vocab"):
        assert getattr(sizes, local) % TILE == 0, local
    assert sizes.dim >= config.dim
    assert config.hidden_dim <= sizes.hidden < 1.15 * config.hidden_dim + TILE * sizes.num_chips
    assert config.vocab_size <= sizes.vocab


def test_a_norm_over_padded_width_equals_the_norm_over_the_real_width() -> None:
    sizes = Sharding(load_config("default"), 1, 8)
    width = sizes.config.dim
    assert sizes.dim > width, "this mesh was chosen because it pads"
    x, weight = torch.randn(4, width, dtype=torch.float64), torch.rand(width, dtype=torch.float64)
    padded = pad_to(x, 4, sizes.dim)
    scale = (padded.square().mean(-1, keepdim=True) + sizes.norm_eps).rsqrt()
    got = (padded * scale)[:, :width] * weight * sizes.norm_scale
    eps = sizes.config.norm_eps
    want = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    torch.testing.assert_close(got, want)


def test_padding_heads_are_zero_rows() -> None:
    heads = torch.arange(6.0).reshape(3, 2)
    picked = pick_heads(heads, (2, None, 0))
    assert picked.tolist() == [4, 5, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("mesh", "batch", "slots", "local"),
    [((1, 8), 5, 5, 5), ((8, 4), 1, 4, 1), ((8, 4), 5, 8, 2), ((8, 4), 32, 32, 8)],
)
def test_a_grid_has_as_few_slots_as_its_columns_share_evenly(
    mesh: tuple[int, int], batch: int, slots: int, local: int
) -> None:
    sizes = Sharding(load_config("Llama-3.1-8B"), *mesh)
    assert sizes.slots(batch) == slots
    assert sizes.local_users(slots) == local


def test_an_unknown_logical_axis_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown axis 'height': choose one of heads"):
        Sharding(load_config("default"), 1, 1).ways("height")


@pytest.mark.parametrize(
    ("hidden", "on_chip"),
    [(29568, 3840), (25600, 3840), (27648, 3840), (18944, 2560), (12288, 1536)],
)
def test_columns_of_chips_share_whole_cores_of_a_ring(hidden: int, on_chip: int) -> None:
    config = dataclasses.replace(tiny_config("qwen2"), hidden_dim=hidden)
    sizes = Sharding(config, 8, 4, ring_cores=24)
    assert sizes.local_hidden == on_chip
    each = -(-on_chip // 32 // 24)
    assert on_chip % (4 * 32 * each) == 0


def test_zero_heads_fill_a_tile_of_a_ring_after_the_real_ones() -> None:
    config = dataclasses.replace(tiny_config("qwen2"), num_heads=40, num_kv_heads=8, head_dim=128)
    heads = Sharding(config, 8, 4, ring_cores=24).heads
    assert heads.query[1] == (5, 6, 7, 8, 9, None, None, None)
    assert heads.key_value[1] == (1,)
