"""Bytes a model needs on each chip, from its sizes alone: before anything is loaded.

Used to refuse what cannot fit, and to choose the prefill chunk. What TT-NN really allocates is
shown by the dry run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from backends.device_specs import DeviceSpec
from models.collectives_kept import LONGEST_KEPT, MOST_SHAPES
from models.kv_cache import CacheConfig, image_pages, kept_images
from models.plans.gathered import Beside
from models.plans.matmul import TILE_BYTES
from models.plans.norm import DISTRIBUTED_FROM_DIM
from models.plans.stored import copied
from models.plans.vision import VisionSizes
from models.precision import LayerPrecision, ModelPrecision, Precision, TensorGroup
from models.registry import canonical_name
from models.sharding import BUCKET, TILE, Sharding, round_up

HOLES = 1.3  # DRAM that activations need over their sum, since each wants one free stretch of it
LONGEST_CHUNK = 128 * 1024
SHORTEST_CHUNK = 2048
WIDE = 2.0  # bytes of a number in bfloat16
RESERVE = 0.04  # share of DRAM left to program binaries, traces and fragmentation


def nothing_beside(tokens: int) -> Beside:
    """Where no sum is scattered, and nothing gathered, beside a product."""
    return Beside()


@dataclass(frozen=True)
class Footprint:
    """Bytes per chip; `activations`: the peak of one layer's when so many tokens are prefilled."""

    weights: int
    cache: int
    tables: int  # of positions, and a grid's places for partial and whole logits of a step
    activations: Callable[[int], int]
    traces: int = 0  # the logits that a prefill's trace leaves behind
    looking: int = 0  # peak while a prompt's images are looked at, before its prefill
    image_states: int = 0  # what images take while their prompt is prefilled
    kept: int = 0  # where chips send each other what replayed prefills sum and gather
    copies: int = 0  # of the weights, what prefill has for itself (plans/stored.py)

    @property
    def standing(self) -> int:
        """Bytes of all that stays, beside the cache."""
        return self.weights + self.tables + self.kept

    def prefill_peak(self, tokens: int) -> int:
        """Bytes of activations when `tokens` are prefilled at once, or an image is looked at."""
        return max(self.looking, self.activations(tokens) + self.image_states) + self.traces

    def prefill_room(self, tokens: int) -> float:
        """Bytes to leave free for that."""
        return HOLES * (self.prefill_peak(tokens) - self.traces) + self.traces


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
    gathers: bool = False,
    beside: Callable[[int], Beside] = nothing_beside,
) -> Footprint:
    """What one chip has to hold.

    `ring`: sums go round one; `gathers`: prefill has copies of weights to gather beside. `beside`:
    what a prefill of so many tokens hands over while it multiplies.
    """
    config, dim = sharding.config, sharding.local_dim
    built = layers or range(config.num_layers)
    weights = 2.0 * config.vocab_size * sharding.local_residual  # embedding table, bfloat16
    cache_bytes = copies = 0.0
    positions = (
        cache_config.num_blocks * cache_config.block_size
        if cache_config.block_size
        else slots * round_up(max_seq_len, BUCKET)
    )
    head = Precision.BFP8
    for index in built:
        layer = precision.layer(index)
        weights += layer_bytes(sharding, layer, spec)
        copies += copied_bytes(sharding, layer, spec, gathers=gathers)
        elements = 2 * positions * sharding.local_kv_heads * sharding.head_dim
        cache_bytes += stored(elements, layer, TensorGroup.KV_CACHE)
        if layer.tensor(TensorGroup.WQKV) is Precision.BF16:
            head = Precision.BF16
    weights += dim * sharding.local_vocab * TILE_BYTES[head] / TILE**2
    if images:
        weights += vision_bytes(sharding, precision, built, spec=spec, images=images, users=slots)
    kinds = {precision.layer(i) for i in built}
    kept = max(kept_bytes_per_token(sharding, kind) for kind in kinds)
    return Footprint(
        weights=math.ceil(weights + copies),
        copies=math.ceil(copies),
        cache=math.ceil(cache_bytes),
        tables=2 * max_seq_len * sharding.head_dim * 2
        + (4 * TILE * sharding.local_vocab if sharding.is_2d else 0),
        # gathered along a row of chips
        traces=2 * TILE * sharding.local_vocab * (1 if sharding.is_2d else sharding.num_chips),
        activations=partial(
            prefill_bytes, sharding, kinds, spec, ring=ring, images=images, beside=beside
        ),
        looking=math.ceil(looking_peak(sharding, precision.layer(built[0]), spec, images)),
        image_states=math.ceil(states_peak(sharding, images)),
        kept=math.ceil(MOST_SHAPES * LONGEST_KEPT * kept),
    )


def stored(elements: int, layer: LayerPrecision, group: TensorGroup) -> float:
    """Bytes of `elements` numbers in the format of a group."""
    return elements * TILE_BYTES[layer.tensor(group)] / TILE**2


def listed(spec: DeviceSpec) -> int:
    """Bytes of one integer of a list, which lies in one bank: all others can hold nothing there."""
    return 4 * spec.dram_banks


def banked(rows: int, columns: int, spec: DeviceSpec, ring: int | None = None) -> int:
    """Elements of a matrix that has equal whole tiles of columns in every DRAM bank.

    For a `ring` of cores, that every one of them multiplies.
    """
    return rows * round_up(columns, TILE * (ring or spec.dram_banks))


def layer_bytes(sharding: Sharding, layer: LayerPrecision, spec: DeviceSpec) -> float:
    """Bytes of the matrices of one layer."""
    dim, ring = sharding.local_dim, sharding.ring_cores
    qkv = stored(banked(dim, sharding.local_qkv_width, spec, ring), layer, TensorGroup.WQKV)
    return qkv + _other_matrices(sharding, layer, spec)


def copied_bytes(
    sharding: Sharding, layer: LayerPrecision, spec: DeviceSpec, *, gathers: bool = False
) -> float:
    """Bytes of the copies of a layer's matrices that are prefill's alone."""
    dim, hidden = sharding.local_dim, sharding.local_hidden
    elements = {
        TensorGroup.WQKV: dim * sharding.local_qkv_width,
        TensorGroup.WO: sharding.local_q_width * dim,
        TensorGroup.FF1_FF3: 2 * dim * hidden,
        TensorGroup.FF2: hidden * dim,
    }
    if gathers:  # beside the projections of attention and the gate
        elements[TensorGroup.FF1_FF3] = dim * hidden
        groups = frozenset({TensorGroup.WQKV, TensorGroup.FF1_FF3})
    else:
        groups = copied(spec)
    return sum(stored(elements[group], layer, group) for group in groups)


def looking_layer_bytes(sharding: Sharding, layer: LayerPrecision, spec: DeviceSpec) -> float:
    """The same of a layer that looks at images: queries lie apart from keys and values."""
    dim = sharding.local_dim
    both = banked(dim, sharding.local_q_width, spec)
    both += banked(dim, 2 * sharding.local_kv_heads * sharding.head_dim, spec)
    return stored(both, layer, TensorGroup.WQKV) + _other_matrices(sharding, layer, spec)


def _other_matrices(sharding: Sharding, layer: LayerPrecision, spec: DeviceSpec) -> float:
    dim, hidden, ring = sharding.local_dim, sharding.local_hidden, sharding.ring_cores
    return (
        stored(banked(sharding.local_q_width, dim, spec, ring), layer, TensorGroup.WO)
        + stored(2 * banked(dim, hidden, spec, ring), layer, TensorGroup.FF1_FF3)
        + stored(banked(hidden, dim, spec, ring), layer, TensorGroup.FF2)
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
    """Bytes of all that images need from loading on.

    Tower, tables, masks, layers that look, image keys, and states of the images that are kept.
    """
    v = sharding.config.vision
    assert v is not None
    sizes, first = VisionSizes(v, sharding.num_chips), precision.layer(layers[0])
    rows, hidden = sizes.rows, sizes.hidden // sizes.ways
    width = sizes.local_heads * sizes.head_width
    blocks = v.num_layers + v.num_global_layers
    matrices = blocks * v.dim * (4 * width + 2 * hidden) + sizes.patch_width * v.dim
    matrices += v.output_dim * sharding.local_residual
    total = stored(matrices, first, TensorGroup.WQKV)
    # a row of numbers has a row of tiles: biases, and one row of every tile's table
    in_tiles = blocks * (hidden + v.dim) + sharding.local_residual
    in_tiles += len(v.ratios) * v.max_tiles * v.dim
    total += WIDE * (TILE * in_tiles + len(v.ratios) * rows * v.dim + rows * TILE)
    total += v.max_tiles * rows**2 * TILE_BYTES[Precision.BFP4] / TILE**2
    total += WIDE * kept_images(images, users) * rows * sharding.dim
    pages = image_pages(v, images, users)
    keys = 2 * pages.num_blocks * TILE * sharding.local_kv_heads * sharding.head_dim
    for before in v.cross_before:
        if before in layers:
            layer = precision.layer(before)
            total += looking_layer_bytes(sharding, layer, spec)
            total += stored(keys, layer, TensorGroup.KV_CACHE)
    return total


def activation_bytes(layer: LayerPrecision) -> float:
    """Bytes of one number where products leave the choice to the precision."""
    chosen = layer.tensor(TensorGroup.ACTIVATION)
    precision = Precision.BFP8 if chosen is Precision.MIXED else chosen
    return TILE_BYTES[precision] / TILE**2


def looking_peak(sharding: Sharding, layer: LayerPrecision, spec: DeviceSpec, images: int) -> float:
    """Peak bytes per chip of the tower's passes, one for each image, and of picking their states.

    Follows the calls of layers/vision and vision_transformer.py.
    """
    v = sharding.config.vision
    if v is None or not images:
        return 0
    sizes, inner = VisionSizes(v, sharding.num_chips), activation_bytes(layer)
    stream = WIDE * v.dim
    heads = WIDE * sizes.local_heads * sizes.head_width
    hidden = inner * sizes.hidden / sizes.ways
    summed = inner * v.dim
    if sizes.ways > 1:  # the partial sums, what collectives pass on, the sum
        summed *= 3
    block = max(stream + 3 * heads, 6 * heads, 2 * heads + summed, stream + hidden, hidden + summed)
    layers = (len(v.intermediate_layers) + 2) * stream + block
    joined, shares = WIDE * v.output_dim, WIDE * sharding.local_residual
    states = WIDE * sharding.dim
    projector = max(2 * joined, joined + shares, shares + states)
    tower = WIDE * sizes.patch_width + max(layers, projector)
    # rows of every image, all in one where there are several, and the picked ones
    picking = images * (states * (2 if images == 1 else 3) + listed(spec))
    # what traces leave: tokens and rotary rows of replayed prefills
    lists = 2 * listed(spec) * MOST_SHAPES * LONGEST_KEPT
    # and logits of two beside a prompt's: of prompts together, and of a step
    logits = 2 * WIDE * TILE * sharding.local_vocab
    return sizes.rows * max(tower, picking) + lists + logits


def masked_bytes_per_token(sharding: Sharding, images: int) -> float:
    """Peak bytes per chip and token where a mask says which of several images a token sees.

    Measured in dry runs: the mask is there twice, while it is laid out in tiles and while the op
    pads it to its blocks of keys.
    """
    v = sharding.config.vision
    assert v is not None
    mask = WIDE * images * v.max_tiles * v.tile_rows
    return WIDE * (sharding.local_residual + 3 * sharding.local_q_width) + 2 * mask


def states_peak(sharding: Sharding, images: int) -> float:
    """Peak bytes per chip of what a prompt's images add to its prefill: states, keys and values."""
    v = sharding.config.vision
    if v is None:
        return 0
    keys = WIDE * sharding.local_kv_heads * sharding.head_dim
    return images * v.max_tiles * v.tile_rows * (WIDE * sharding.dim + 7 * keys)


def prefill_bytes(
    sharding: Sharding,
    kinds: Iterable[LayerPrecision],
    spec: DeviceSpec,
    tokens: int,
    *,
    ring: bool,
    images: int,
    beside: Callable[[int], Beside],
) -> int:
    """Peak bytes per chip of a prefill of `tokens`, in layers of several kinds."""
    now = beside(tokens)
    per_token = max(prefill_bytes_per_token(sharding, kind, ring, now) for kind in kinds)
    if images > 1:
        per_token = max(per_token, masked_bytes_per_token(sharding, images))
    per_token += 2 * listed(spec)  # tokens, and rows of the rotary tables
    return math.ceil(tokens * per_token) + now.rooms


def prefill_bytes_per_token(
    sharding: Sharding, layer: LayerPrecision, ring: bool, beside: Beside
) -> float:
    """Peak bytes per chip and token of one layer's prefill: the largest of what lives at once.

    Follows the calls of models/layers, where the dry run saw the peaks. The reduce-scatter of a
    mesh of one row holds two copies of its input on a line, one on a ring, and none beside the
    product: it has room for that then, which is not counted here.
    """
    wide, inner = WIDE, activation_bytes(layer)
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
    out_sum, copy = out, 0.0
    if sharding.num_chips > 1:
        out_sum += out / sharding.ways("heads")
        copy = out if ring and on_line else 2 * out
    columns = sharding.cols if sharding.is_2d else 1
    attention = stream + max(
        norm,
        normed + heads,
        # summed over the columns first; then split into heads, and these turned
        (2 if ring else 3) * heads + heads / columns if sharding.is_2d else 2 * heads,
        2 * queries + out_sum + (0 if beside.attention else copy),
    )
    mlp = 2 * stream + max(
        norm,
        normed + 2 * gate,
        (3 if ring else 4) * gate + gate / columns if sharding.is_2d else 3 * gate,
        gate / columns + out_sum + (0 if beside.mlp else copy),
    )
    rotation = 2 * wide * sharding.head_dim
    return rotation + max(attention, mlp)


def kept_bytes_per_token(sharding: Sharding, layer: LayerPrecision) -> float:
    """Bytes per chip and token of the buffers of a replayed prefill, which all layers share.

    Follows the calls of layers/ into collectives_kept.py; only meshes of rows and columns have any.
    """
    if not sharding.is_2d:
        return 0
    inner, rows, columns = activation_bytes(layer), sharding.rows, sharding.cols
    stats = WIDE * TILE * columns
    # of each sum the parts, this chip's share, and the whole
    heads = WIDE * sharding.local_qkv_width * (2 + 1 / columns)
    out = inner * sharding.local_dim * (2 + 1 / rows)
    gates = 2 * inner * sharding.local_hidden * (1 + 1 / columns)
    return stats + heads + 2 * out + gates + inner * sharding.local_hidden


def dram_bytes(spec: DeviceSpec) -> int:
    """DRAM of one chip that a model may use."""
    return int(spec.dram_banks * spec.dram_bank_bytes * (1 - RESERVE))


def check_fits(needs: Footprint, spec: DeviceSpec, what: str) -> None:
    """Refuse with the numbers what cannot fit into one chip's share of DRAM."""
    looking = HOLES * needs.looking
    total = needs.standing + needs.cache + looking
    room = dram_bytes(spec)
    if total > room:
        gib = 2**30
        images = f", {looking / gib:.1f} GiB to look at images" if looking else ""
        twice = f" ({needs.copies / gib:.1f} of them prefill's own)" if needs.copies else ""
        raise ValueError(
            f"{what} does not fit {spec.name}: each chip needs {needs.weights / gib:.1f} GiB of "
            f"weights{twice} and {needs.cache / gib:.1f} GiB of cache{images}, and has "
            f"{room / gib:.1f} GiB: use more chips, a coarser precision, or a smaller max_seq_len, "
            "batch or page budget"
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
    free = dram_bytes(spec) - needs.standing - needs.cache
    chunk = known * 1024 if known else LONGEST_CHUNK
    while chunk > SHORTEST_CHUNK and needs.prefill_room(chunk) > free:
        chunk //= 2
    return chunk
