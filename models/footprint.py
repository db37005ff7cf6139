"""Bytes a model needs on each chip, from its sizes alone: before anything is loaded.

Used to refuse what cannot fit, and to choose the prefill chunk. What TT-NN really allocates is
shown by the dry run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from backends.device_specs import DeviceSpec
from models.kv_cache import CacheConfig, image_pages
from models.plans.matmul import TILE_BYTES
from models.plans.norm import DISTRIBUTED_FROM_DIM
from models.plans.vision import VisionSizes
from models.precision import LayerPrecision, ModelPrecision, Precision, TensorGroup
from models.registry import canonical_name
from models.sharding import BUCKET, TILE, Sharding, round_up

HOLES = 1.3  # DRAM that activations need over their sum, since each wants one free stretch of it
LONGEST_CHUNK = 128 * 1024
SHORTEST_CHUNK = 2048
RESERVE = 0.04  # share of DRAM left to program binaries, traces and fragmentation


@dataclass(frozen=True)
class Footprint:
    """Bytes per chip; `prefill_per_token` is the peak of one layer's activations."""

    weights: int
    cache: int
    tables: int
    prefill_per_token: int
    traces: int = 0  # the logits that a prefill's trace leaves behind

    def prefill_room(self, tokens: int) -> float:
        """Bytes to leave free for prefilling `tokens` at once."""
        return HOLES * tokens * self.prefill_per_token + self.traces


def footprint(
    sharding: Sharding,
    precision: ModelPrecision,
    cache_config: CacheConfig,
    *,
    spec: DeviceSpec,
    layers: range | None = None,
    slots: int = 1,
    max_seq_len: int,
    ring: bool,
    images: int = 0,
) -> Footprint:
    """What one chip has to hold."""
    config = sharding.config
    dim = sharding.local_dim
    weights = 2.0 * config.vocab_size * sharding.local_residual  # embedding table, bfloat16
    cache_bytes = 0.0
    positions = (
        cache_config.num_blocks * cache_config.block_size
        if cache_config.block_size
        else slots * round_up(max_seq_len, BUCKET)
    )
    head = Precision.BFP8
    for index in layers or range(config.num_layers):
        layer = precision.layer(index)

        weights += layer_bytes(sharding, layer, spec)
        elements = 2 * positions * sharding.local_kv_heads * sharding.head_dim
        cache_bytes += stored(elements, layer, TensorGroup.KV_CACHE)
        if layer.tensor(TensorGroup.WQKV) is Precision.BF16:
            head = Precision.BF16
    weights += dim * sharding.local_vocab * TILE_BYTES[head] / TILE**2
    if images:
        built = layers or range(config.num_layers)
        weights += vision_bytes(sharding, precision, built, spec=spec, images=images, users=slots)
    return Footprint(
        weights=math.ceil(weights),
        cache=math.ceil(cache_bytes),
        tables=2 * max_seq_len * sharding.head_dim * 2,
        # gathered along a row of chips
        traces=2 * TILE * sharding.local_vocab * (1 if sharding.is_2d else sharding.num_chips),
        prefill_per_token=math.ceil(
            max(
                prefill_bytes_per_token(sharding, precision.layer(index), ring)
                for index in layers or range(config.num_layers)
            )
        ),
    )


def stored(elements: int, layer: LayerPrecision, group: TensorGroup) -> float:
    """Bytes of so many numbers in the format of a group."""
    return elements * TILE_BYTES[layer.tensor(group)] / TILE**2


def layer_bytes(sharding: Sharding, layer: LayerPrecision, spec: DeviceSpec) -> float:
    """Bytes of the matrices of one layer, whatever it attends to."""
    dim, hidden = sharding.local_dim, sharding.local_hidden
    # a matrix has equal whole tiles of columns in every DRAM bank
    bank = TILE * spec.dram_banks
    return (
        stored(dim * round_up(sharding.local_qkv_width, bank), layer, TensorGroup.WQKV)
        + stored(sharding.local_q_width * round_up(dim, bank), layer, TensorGroup.WO)
        + stored(2 * dim * round_up(hidden, bank), layer, TensorGroup.FF1_FF3)
        + stored(hidden * round_up(dim, bank), layer, TensorGroup.FF2)
    )


def vision_bytes(
    sharding: Sharding,
    precision: ModelPrecision,
    layers: range,
    *,
    spec: DeviceSpec,
    images: int,
    users: int,
) -> float:
    """Bytes of tower, tables, layers that look, their keys, and the states of one prompt."""
    config, v = sharding.config, sharding.config.vision
    assert v is not None
    sizes, first = VisionSizes(v, sharding.num_chips), precision.layer(layers[0])
    width, hidden, rows = (
        sizes.local_heads * sizes.head_width,
        sizes.hidden // sizes.ways,
        sizes.rows,
    )
    blocks = v.num_layers + v.num_global_layers
    matrices = blocks * v.dim * (4 * width + 2 * hidden) + sizes.patch_width * v.dim
    matrices += v.output_dim * sharding.local_residual
    total = stored(matrices, first, TensorGroup.WQKV)
    total += 2.0 * len(v.ratios) * (rows + v.max_tiles * TILE) * v.dim + 2 * rows * TILE
    total += v.max_tiles * rows**2 * TILE_BYTES[Precision.BFP4] / TILE**2
    total += 2.0 * images * rows * config.dim
    pages = image_pages(v, images, users)
    keys = 2 * pages.num_blocks * TILE * sharding.local_kv_heads * sharding.head_dim
    for before in v.cross_before:
        if before in layers:
            layer = precision.layer(before)
            total += layer_bytes(sharding, layer, spec)
            total += stored(keys, layer, TensorGroup.KV_CACHE)
    return total


def prefill_bytes_per_token(sharding: Sharding, layer: LayerPrecision, ring: bool) -> float:
    """Peak bytes per chip and token of one layer's prefill: the largest of what lives at once.

    Follows the calls of models/layers, where the dry run saw the peaks. The reduce-scatter of a
    mesh of one row holds two copies of its input on a line, and on a ring what comes from both
    sides: half of one and its own slice; that of a Galaxy two.
    """
    wide, inner = 2.0, TILE_BYTES[Precision.BFP8] / TILE**2  # bytes: bfloat16, and what is chosen
    chosen = layer.tensor(TensorGroup.ACTIVATION)
    if chosen is not Precision.MIXED:
        inner = TILE_BYTES[chosen] / TILE**2
    on_line = not sharding.is_2d and sharding.num_chips > 1
    stream = wide * sharding.local_residual
    # shares are normed before they are gathered, and travel as activations do
    normed = (inner if on_line else wide) * sharding.local_dim
    norm = normed
    if on_line:  # gathered before the norm, or its shards after it
        norm += stream if sharding.dim > DISTRIBUTED_FROM_DIM else normed
    heads = wide * sharding.local_qkv_width
    queries = inner * sharding.local_q_width
    gate = inner * sharding.local_hidden
    out = inner * sharding.local_dim
    chips = sharding.num_chips
    copies = (chips // 2 + 1) / chips if ring and not sharding.is_2d else 2
    out_sum = out
    if sharding.num_chips > 1:
        out_sum += copies * out + out / sharding.ways("heads")
    columns = sharding.cols if sharding.is_2d else 1
    attention = stream + max(
        norm,
        normed + heads,
        # summed over the columns first; then split into heads, and these turned
        3 * heads + heads / columns if sharding.is_2d else 2 * heads,
        2 * queries + out_sum,
    )
    mlp = 2 * stream + max(
        norm,
        normed + 2 * gate,
        4 * gate + gate / columns if sharding.is_2d else 3 * gate,
        gate / columns + out_sum,
    )
    rotation = 2 * wide * sharding.head_dim
    return rotation + max(attention, mlp)


def dram_bytes(spec: DeviceSpec) -> int:
    """DRAM of one chip that a model may use."""
    return int(spec.dram_banks * spec.dram_bank_bytes * (1 - RESERVE))


def check_fits(needs: Footprint, spec: DeviceSpec, what: str) -> None:
    """Refuse with the numbers what cannot fit into one chip's share of DRAM."""
    total = needs.weights + needs.cache + needs.tables
    room = dram_bytes(spec)
    if total > room:
        gib = 2**30
        raise ValueError(
            f"{what} does not fit {spec.name}: each chip needs {needs.weights / gib:.1f} GiB of "
            f"weights and {needs.cache / gib:.1f} GiB of cache, and has {room / gib:.1f} GiB: use "
            "more chips, a coarser precision, or a smaller max_seq_len, batch or page budget"
        )


@cache
def published_chunks() -> dict[str, dict[str, int]]:
    """Thousands of tokens to prefill at once, by model and device."""
    text = (Path(__file__).parent / "prefill_chunks.json").read_text(encoding="utf-8")
    return json.loads(text)["thousands_of_tokens"]


def max_prefill_chunk(sharding: Sharding, spec: DeviceSpec, needs: Footprint) -> int:
    """Tokens to prefill at once: the published size of a known model, or less if DRAM is full."""
    name = canonical_name(sharding.config.name) or sharding.config.name
    known = published_chunks().get(name, {}).get(spec.name)
    free = dram_bytes(spec) - needs.weights - needs.cache - needs.tables
    chunk = known * 1024 if known else LONGEST_CHUNK
    while chunk > SHORTEST_CHUNK and needs.prefill_room(chunk) > free:
        chunk //= 2
    return chunk
