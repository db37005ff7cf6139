"""All that is decided about a run before a mesh is opened: shapes, precision, memory, wires.

Drawn once from options, settings and a model's config; what loads a model (loading.py), what
records its ops (perf) and what tries it on mock chips (dry_run/) all build from the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from loguru import logger

from backends import ttnn
from backends.device_specs import SPECS, DeviceSpec
from models.collectives import Links
from models.config import ModelConfig
from models.footprint import (
    SHORTEST_CHUNK,
    Footprint,
    check_fits,
    dram_bytes,
    footprint,
    max_prefill_chunk,
    nothing_beside,
)
from models.kv_cache import CacheConfig
from models.numbers import check_number
from models.plans.fused import opened, shard
from models.plans.gathered import Beside, beside, can_gather
from models.plans.target import Habits, Target
from models.precision import ModelPrecision
from models.sharding import MAX_USERS, TILE, Sharding
from models.transformer import ModelOptions
from models.vision_config import no_vision
from runtime.chunking import bucket_length
from runtime.settings import ALL_GATHERS, Settings

LONGEST_ON_LINES = 16_384  # tokens; the reference has validated no more
WEIGHTS = ("instruct", "random", "placeholder")


@dataclass(frozen=True)
class LoadOptions:
    """What to run and how; everything has a default that runs the default model."""

    model: str = "default"  # name of model_params, directory, GGUF file or hub name
    device: str = "N150"
    weights: str = "instruct"  # instruct: the checkpoint's own; placeholder: sizes only (dry run)
    optimizations: str = "performance"  # a preset, or the grammar of models/precision.py
    decoder_config_file: Path | None = None
    max_batch_size: int = 1  # per data-parallel group
    max_seq_len: int = 1024
    cache: CacheConfig = CacheConfig(block_size=32, num_blocks=1024)
    layers: range | None = None
    data_parallel: int = 1
    max_prefill_chunk: int | None = None
    enable_trace: bool = True
    batched_prefill: bool = True
    ring: bool | None = None  # None: closed where the device can and one group has all of it
    trace_region_size: int = 50_000_000
    worker_l1_size: int | None = None  # bytes of each core's L1 for tensors; None: TT-NN's default
    fill_grid: bool = False  # 2D meshes decode a whole tile of users, as some software does
    habits: Habits = Habits.OWN  # whose plans: only the calibration asks for others
    seed: int = 0  # of random weights
    images: int = 0  # most images of one prompt; 0: a vision model runs its text stack alone


def spec_of(options: LoadOptions) -> DeviceSpec:
    """Facts of the device the options name."""
    if options.device not in SPECS:
        raise ValueError(f"unknown device {options.device!r}: choose one of {', '.join(SPECS)}")
    return SPECS[options.device]


def check_options(options: LoadOptions, config: ModelConfig, spec: DeviceSpec) -> None:
    """Refuse what no engine can do, before anything is opened."""
    check_number("batch_size", options.max_batch_size)
    layers = options.layers or range(config.num_layers)
    if not layers or not 0 <= layers[0] <= layers[-1] < config.num_layers:
        raise ValueError(
            f"{config.name} has {config.num_layers} layers, {len(layers)} were asked for: "
            f"use 1 to {config.num_layers}"
        )
    if options.weights not in WEIGHTS:
        raise ValueError(f"unknown weights {options.weights!r}: choose one of {', '.join(WEIGHTS)}")
    if options.max_seq_len > config.max_position_embeddings:
        raise ValueError(
            f"max_seq_len {options.max_seq_len} is longer than the context of {config.name}, "
            f"{config.max_position_embeddings} tokens: use a smaller one"
        )
    check_sight(options, config, group_shape(spec, max(1, options.data_parallel)))
    chips = spec.num_chips
    if options.data_parallel < 1 or chips % options.data_parallel:
        fits = [n for n in range(1, chips + 1) if chips % n == 0]
        raise ValueError(
            f"data_parallel {options.data_parallel} does not divide the {chips} chips of "
            f"{spec.name}: choose one of {', '.join(map(str, fits))}"
        )


def check_sight(options: LoadOptions, config: ModelConfig, shape: tuple[int, int]) -> None:
    """Refuse images where there are no eyes for them."""
    check_number("images", options.images)
    if options.images and config.vision is None:
        raise no_vision(config.name)
    if options.images and min(shape) > 1:
        raise ValueError(
            f"{config.name} takes images on one chip or a line of chips, not on a mesh of "
            f"{shape[0]}x{shape[1]}: use N300, T3K or P150, or text alone"
        )


def group_shape(spec: DeviceSpec, data_parallel: int) -> tuple[int, int]:
    """Mesh shape of one data-parallel group."""
    rows, cols = spec.mesh_shape
    chips = rows * cols // data_parallel
    if data_parallel == 1:
        return rows, cols
    # groups of a 2D mesh are its columns' halves, wholes, ... read as 1D meshes
    return (1, chips)


def precision_of(options: LoadOptions, config: ModelConfig) -> ModelPrecision:
    """A decoder file beats the optimizations string, which beats the preset."""
    if options.decoder_config_file is not None:
        return ModelPrecision.from_decoder_config(
            options.decoder_config_file, config, preset=options.optimizations
        )
    if options.optimizations in ("performance", "accuracy"):
        return ModelPrecision.preset(options.optimizations, config)
    return ModelPrecision.parse(options.optimizations, config)


def links_of(settings: Settings, options: LoadOptions, spec: DeviceSpec) -> Links:
    """Wires for collectives, with the debug switches of the environment.

    A ring unless told otherwise, where the device closes one and a single group has all of it.
    """
    closes = any(spec.ring) and options.data_parallel == 1
    ring = closes if options.ring is None else options.ring
    names = settings.line_all_gather_names
    if settings.line_all_gather:
        names = frozenset(ALL_GATHERS)
    if ring and (settings.line_reduce_scatter or names) and options.max_seq_len > LONGEST_ON_LINES:
        logger.warning(
            f"collectives over lines are meant for debugging up to {LONGEST_ON_LINES} tokens, "
            f"max_seq_len is {options.max_seq_len}: unset LINE_RS, LINE_AG and USE_LINE_AG"
        )
    return Links(
        num_links=(max(1, spec.links[0]), max(1, spec.links[1])),
        ring=ring,
        line_reduce=settings.line_reduce_scatter,
        line_gather=names,
    )


@dataclass(frozen=True)
class Blueprint:
    """One run, decided; `sharding` and all bytes are of one data-parallel group."""

    options: LoadOptions
    config: ModelConfig
    spec: DeviceSpec
    precision: ModelPrecision
    links: Links
    sharding: Sharding
    prefill_chunk: int | None = None  # what the user asked for

    @property
    def mesh_shape(self) -> tuple[int, int]:
        """Rows and columns of chips of one group."""
        return self.sharding.rows, self.sharding.cols

    @property
    def slots(self) -> int:
        """Users whom a decode step has room for."""
        if self.sharding.ring_cores or (self.options.fill_grid and self.sharding.is_2d):
            return TILE
        return self.sharding.slots(self.options.max_batch_size)

    @property
    def prefetch(self) -> bool:
        """Whether decode reads weights ahead of time, for which layers have to be alike."""
        kinds = {self.precision.layer(i) for i in range(self.config.num_layers)}
        return self.sharding.ring_cores is not None and len(kinds) == 1

    @cached_property
    def needs(self) -> Footprint:
        """Bytes that one chip has to hold."""
        return self._needs(self.options.layers, gathers=self.gathers)

    @cached_property
    def gathers(self) -> bool:
        """Whether prefill has copies of weights, to gather its input beside their products.

        Where a chip has room for those of the whole model beside all that it would hold without.
        """
        own = self.options.habits is Habits.OWN and self.links.closed and not self.options.images
        if not (own and can_gather(self.sharding)):
            return False
        whole = self._needs(None, gathers=True)
        bare = self._needs(None, gathers=False)
        chunk = self.prefill_chunk or max_prefill_chunk(self.sharding, self.spec, bare)
        taken = whole.standing + whole.cache + whole.prefill_room(chunk)
        return taken <= dram_bytes(self.spec)

    def _needs(self, layers: range | None, *, gathers: bool) -> Footprint:
        return footprint(
            self.sharding,
            self.precision,
            self.options.cache,
            spec=self.spec,
            layers=layers,
            slots=self.slots,
            max_seq_len=self.options.max_seq_len,
            ring=self.links.ring and not self.links.line_reduce,
            images=self.options.images,
            gathers=gathers,
            beside=self._beside(layers, gathers=gathers),
        )

    def _beside(self, layers: range | None, *, gathers: bool) -> Callable[[int], Beside]:
        """What prefills of so many tokens hand over beside products, on a ring."""
        sizes, links = self.sharding, self.links
        if sizes.is_2d or sizes.num_chips < 3 or not links.ring or links.line_reduce:
            return nothing_beside
        kinds = {self.precision.layer(i) for i in layers or range(self.config.num_layers)}
        arch = getattr(ttnn.Arch, self.spec.arch.upper())
        targets = [
            Target(self.spec, arch, sizes, kind, self.slots, self.options.habits, gathers=gathers)
            for kind in kinds
        ]
        return lambda tokens: beside(targets, bucket_length(tokens))

    @property
    def max_prefill_chunk(self) -> int:
        """Tokens to prefill at once."""
        return self.prefill_chunk or max_prefill_chunk(self.sharding, self.spec, self.needs)

    @property
    def model_options(self) -> ModelOptions:
        """How the model of one group is built."""
        return ModelOptions(
            max_batch_size=self.options.max_batch_size,
            slots=self.slots,
            max_seq_len=self.options.max_seq_len,
            cache=self.options.cache,
            layers=self.options.layers,
            pad_mlp_cores=self.sharding.pad_mlp_cores,
            ring_cores=self.sharding.ring_cores,
            shared_users=self.sharding.shared_users,
            prefetch=self.prefetch,
            gathers=self.gathers,
            links=self.links,
            habits=self.options.habits,
            images=self.options.images,
        )

    def check_fits(self) -> None:
        """Refuse with the numbers what one chip cannot hold."""
        check_fits(self.needs, self.spec, self.config.name)

    def with_cache(self, num_blocks: int, max_seq_len: int) -> Blueprint:
        """The same run with another page pool and context."""
        cache = replace(self.options.cache, num_blocks=num_blocks)
        return replace(self, options=replace(self.options, max_seq_len=max_seq_len, cache=cache))

    def blocks_that_fit(self, max_seq_len: int) -> int:
        """Pages that DRAM holds beside the weights and the activations of the largest prefill.

        Copies of weights that prefill could do without make way for them, not those of a ring's;
        beside these a prompt of `max_seq_len` goes in pieces where its pages had no room else.
        """
        empty = self.with_cache(0, max_seq_len)
        per_block = self.with_cache(1024, max_seq_len).needs.cache / 1024
        chunk = min(empty.max_prefill_chunk, bucket_length(max_seq_len))
        needs = empty._needs(self.options.layers, gathers=False)
        free = dram_bytes(self.spec) - needs.standing
        wanted = per_block * max_seq_len / (self.options.cache.block_size or 1)
        while needs.copies and chunk > SHORTEST_CHUNK and free - needs.prefill_room(chunk) < wanted:
            chunk //= 2
        return int((free - needs.prefill_room(chunk)) // per_block)


def draw(
    options: LoadOptions,
    settings: Settings,
    config: ModelConfig,
    spec: DeviceSpec | None = None,
) -> Blueprint:
    """The blueprint of a run; `spec` takes the place of the named device's facts.

    Raises ValueError for what no engine can do; whether it fits is Blueprint.check_fits's to say.
    """
    spec = spec or spec_of(options)
    check_options(options, config, spec)
    sharding = shard(
        config,
        group_shape(spec, options.data_parallel),
        spec,
        settings.pad_mlp_cores,
        fused=options.habits.fuses and options.cache.block_size is not None,
        least_users=options.max_batch_size if options.habits is Habits.OWN else MAX_USERS,
    )
    return Blueprint(
        options,
        config,
        opened(spec, sharding) if options.habits is Habits.OWN else spec,
        precision_of(options, config),
        links_of(settings, options, spec),
        sharding,
        options.max_prefill_chunk or settings.max_prefill_chunk,
    )
