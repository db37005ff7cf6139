"""The decoder stack: embedding, layers, norm, output projection. Device tensors in and out.

`decode` takes one token of every slot, `prefill` whole prompts or one chunk of one prompt; both
return logits of each chip's share of the vocabulary. Host tensors, page tables and traces are
runtime/engine.py's. Read next: layers/decoder.py, then sharding.py and plans/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from backends import ttnn
from backends.device_specs import DeviceSpec
from backends.op_record import scope
from models.collectives import Links, collectives
from models.collectives_fused import fused_mesh
from models.config import ModelConfig
from models.kv_cache import CacheAddress, CacheConfig, DenseKVCache, PagedKVCache
from models.layers.decoder import DecoderLayer
from models.layers.embedding import Embedding
from models.layers.lm_head import LMHead
from models.layers.norm import RMSNorm
from models.layers.rope import RotaryEmbedding
from models.layers.sampler import DeviceSampler
from models.plans.attention import attention_weights, rope_plan
from models.plans.gathered import gather_rooms
from models.plans.lm_head import lm_head_plan
from models.plans.norm import norm_plan, residual_memory
from models.plans.scattered import rooms
from models.plans.target import Habits, Phase, Target
from models.precision import ModelPrecision
from models.prefetch import Prefetcher
from models.sharding import BUCKET, Sharding, round_up
from models.weights import WeightLoader


@dataclass(frozen=True)
class ModelOptions:
    """How a model is built, beside what it is."""

    max_batch_size: int = 1
    slots: int | None = None  # users decoded at a time; None: as few as hold the batch
    max_seq_len: int = 1024
    cache: CacheConfig = CacheConfig(block_size=32, num_blocks=1024)
    layers: range | None = None  # None: all of them
    pad_mlp_cores: int | None = None
    ring_cores: int | None = None  # of a fused decode step, see plans/fused.py
    shared_users: bool = False  # columns of a 2D mesh attend for the same users
    prefetch: bool = False  # on the ring, weights are read ahead of time
    gathers: bool = False  # prefill has copies of weights, to gather beside their products
    links: Links = Links()
    habits: Habits = Habits.OWN
    images: int = 0  # most images of one prompt; 0: text alone


class Transformer:
    """One model on one mesh (or submesh)."""

    def __init__(
        self,
        mesh: Any,
        spec: DeviceSpec,
        config: ModelConfig,
        precision: ModelPrecision,
        checkpoint: Any,
        weight_cache: Any,
        options: ModelOptions,
    ) -> None:
        rows, cols = tuple(mesh.shape)
        self.mesh, self.config, self.options = mesh, config, options
        self.sharding = Sharding(
            config, rows, cols, options.pad_mlp_cores, options.ring_cores, options.shared_users
        )
        self.batch = options.slots or self.sharding.slots(options.max_batch_size)
        self.weights = weights = WeightLoader(mesh, self.sharding, checkpoint, weight_cache)
        indices = options.layers or range(config.num_layers)
        targets = [
            Target(spec, mesh.arch(), self.sharding, precision.layer(i), self.batch,
                   options.habits, options.prefetch, options.gathers)
            for i in indices
        ]  # fmt: skip
        self.indices, self.targets = indices, targets
        # sums of all layers share buffers: as wide as the widest parts that travel
        widest = [t for t in targets if t.summed_dtype == ttnn.bfloat16]
        self.ccl = collectives((widest or targets)[0], options.links, mesh)
        if self.sharding.ring_cores:
            self.ccl.fused = fused_mesh(targets[0], options.links, mesh)
        self.caches = [
            self._cache(index, target) for index, target in zip(indices, targets, strict=True)
        ]
        self.rope = RotaryEmbedding(mesh, config, options.max_seq_len, rope_plan(targets[0]))
        self.embedding = Embedding(weights)
        self.layers = [
            DecoderLayer(index, weights, target, cache, self.ccl)
            for index, target, cache in _progress(
                list(zip(indices, targets, self.caches, strict=True)), "loading layers"
            )
        ]
        if options.prefetch:
            self.ccl.decode.prefetcher = Prefetcher(mesh, spec, self.layers)
        last = targets[-1]
        self.norm = RMSNorm(
            "norm", weights, {phase: norm_plan(last, phase) for phase in Phase}, self.ccl
        )
        self.lm_head = LMHead(weights, lm_head_plan(last), self.ccl)
        own = options.habits is Habits.OWN
        self.sampler = DeviceSampler(mesh, self.sharding, self.batch, fold=own, ccl=self.ccl)

    def _cache(self, index: int, target: Target) -> PagedKVCache:
        sizes, cache = self.sharding, self.options.cache
        heads, width = sizes.local_kv_heads, sizes.head_dim
        dtype = attention_weights(target).cache_dtype
        if cache.block_size is None and sizes.is_2d:
            raise ValueError("a dense cache needs a 1D mesh: use paged attention on a 2D mesh")
        length = round_up(self.options.max_seq_len, BUCKET)  # padding is filled in, too
        with scope(f"layers.{index}"):  # a full DRAM is reported with the layer that met it
            if cache.block_size is not None:
                return PagedKVCache(self.mesh, cache, heads, width, dtype)
            return DenseKVCache(self.mesh, self.batch, heads, length, width, dtype)

    def decode(self, tokens_111B: Any, rope_positions_1B: Any, at: CacheAddress) -> Any:
        """Logits [1, 1, B, V] of the next token of every slot.

        tokens uint32 [1, 1, 1, B]; rope positions, rows of its tables, uint32 [1, B] (idle slots
        any), columns may have their own users'; `at.positions` int32 [B], -1 for idle slots.
        """
        residual = residual_memory(self.targets[0], Phase.DECODE)
        with scope("embedding"):
            x_11BD = self.ccl.begin(self.embedding(tokens_111B, residual), residual)
            rotate = self.rope.decode(rope_positions_1B)
        self.ccl.decode.begin_step()
        for layer in self.layers_of(at):
            x_11BD = layer.decode(x_11BD, rotate, at)
        with scope("lm_head"):
            normed, _ = self.norm.decode(x_11BD)
            return self.lm_head(normed)

    def prefill(
        self,
        tokens_111S: Any,
        rope_positions_1S: Any,
        at: CacheAddress,
        *,
        users: int = 1,
        last_rows: Any = None,
    ) -> Any:
        """Logits [1, 1, n, V] of the rows `last_rows` (uint32 [1, n]); None fills the cache only.

        tokens uint32 [1, 1, 1, users * S]: prompts of equal padded length one after the other;
        rope positions uint32 [1, S] are common to them.
        """
        with scope("embedding"):
            x_11SD = self.embedding(tokens_111S, ttnn.DRAM_MEMORY_CONFIG)
            rotate = self.rope.prefill(rope_positions_1S, users)
        rows = x_11SD.shape[2]
        with self.ccl.receiving(rooms(self.targets, rows) | gather_rooms(self.targets, rows)):
            for layer in self.layers_of(at):
                before, x_11SD = x_11SD, layer.prefill(x_11SD, rotate, at, users)
                ttnn.deallocate(before)
        if last_rows is None:
            return None
        with scope("last_rows"):
            # the rows are looked up like embeddings, so their place is an input, not a program
            table = ttnn.to_layout(x_11SD, ttnn.ROW_MAJOR_LAYOUT)
            picked = ttnn.embedding(last_rows, table, layout=ttnn.TILE_LAYOUT)
            residual = residual_memory(self.targets[-1], Phase.DECODE)
            x_11ND = self.ccl.begin(ttnn.unsqueeze_to_4D(picked), residual)
        with scope("lm_head"):
            normed, _ = self.norm.decode(x_11ND)
            return self.lm_head(normed)

    def layers_of(self, at: CacheAddress) -> Sequence[Any]:
        """The layers that a pass goes through; vision_transformer.py has more with images."""
        return self.layers

    def sample(self, logits_11BV: Any, inputs: Any, tokens_111B: Any) -> Any:
        """Draw the next token of every slot into `tokens_111B`."""
        with scope("sampling"):
            return self.sampler(logits_11BV, inputs, tokens_111B)

    @contextmanager
    def one_layer_of_each_kind(self) -> Iterator[None]:
        """Layers of one precision have the same programs: one of each has all that there are."""
        whole = self.layers
        kinds = {target.precision: layer for target, layer in zip(self.targets, whole, strict=True)}
        self.layers = list(kinds.values())
        try:
            yield
        finally:
            self.layers = whole


def _progress(items: Sequence[Any], what: str) -> Iterable[Any]:
    """A progress bar where there is enough to wait for."""
    return tqdm(items, desc=what, leave=False, disable=True if len(items) < 8 else None)
