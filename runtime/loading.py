"""From names and options to engines: config, precision, weights, mesh, one engine per data group.

The only place that knows how all the parts of a run fit together; demos, the dry run's worker and
the tools all come through `load_engines`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from backends.device_specs import SPECS, DeviceSpec
from backends.mesh import open_mesh, split_mesh
from models.checkpoints import PlaceholderCheckpoint, RandomCheckpoint
from models.collectives import Links
from models.config import ModelConfig
from models.footprint import check_fits, footprint, max_prefill_chunk
from models.kv_cache import CacheConfig
from models.precision import ModelPrecision
from models.registry import load_config
from models.sharding import Sharding
from models.transformer import ModelOptions, Transformer
from runtime.engine import Engine
from runtime.settings import Settings

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
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
    seed: int = 0  # of random weights


@dataclass(frozen=True)
class Loaded:
    """Engines of one run, one per data-parallel group, and what they were made of."""

    engines: list[Engine]
    config: ModelConfig
    precision: ModelPrecision
    spec: DeviceSpec
    checkpoint: Any


def check_options(options: LoadOptions, config: ModelConfig) -> None:
    """Refuse what no engine can do, before anything is opened."""
    if options.device not in SPECS:
        raise ValueError(f"unknown device {options.device!r}: choose one of {', '.join(SPECS)}")
    if options.max_batch_size not in BATCH_SIZES:
        raise ValueError(
            f"batch size {options.max_batch_size} is not supported: "
            f"choose one of {', '.join(map(str, BATCH_SIZES))}"
        )
    if options.weights not in WEIGHTS:
        raise ValueError(f"unknown weights {options.weights!r}: choose one of {', '.join(WEIGHTS)}")
    if options.max_seq_len > config.max_position_embeddings:
        raise ValueError(
            f"max_seq_len {options.max_seq_len} is longer than the context of {config.name}, "
            f"{config.max_position_embeddings} tokens: use a smaller one"
        )
    rows, cols = SPECS[options.device].mesh_shape
    chips = rows * cols
    if options.data_parallel < 1 or chips % options.data_parallel:
        fits = [n for n in range(1, chips + 1) if chips % n == 0]
        raise ValueError(
            f"data_parallel {options.data_parallel} does not divide the {chips} chips of "
            f"{options.device}: choose one of {', '.join(map(str, fits))}"
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
        names = frozenset({"QKV", "WO", "FF1", "FF3", "FF2", "LAYERNORM"})
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


@contextmanager
def load_engines(options: LoadOptions, settings: Settings) -> Iterator[Loaded]:
    """Open the mesh, load the model on every data group, close everything in the end."""
    checkpoint = _open(options)
    config: ModelConfig = checkpoint.config
    check_options(options, config)
    precision = precision_of(options, config)
    spec = SPECS[options.device]
    shape = group_shape(spec, options.data_parallel)
    links = links_of(settings, options, spec)
    sharding = Sharding(config, *shape, settings.pad_mlp_cores)
    needs = footprint(
        sharding,
        precision,
        options.cache,
        spec=spec,
        layers=options.layers,
        slots=sharding.slots(options.max_batch_size),
        max_seq_len=options.max_seq_len,
        ring=links.ring,
    )
    check_fits(needs, spec, config.name)
    chunk = (
        options.max_prefill_chunk
        or settings.max_prefill_chunk
        or max_prefill_chunk(sharding, spec, needs)
    )
    model_options = ModelOptions(
        max_batch_size=options.max_batch_size,
        max_seq_len=options.max_seq_len,
        cache=options.cache,
        layers=options.layers,
        pad_mlp_cores=settings.pad_mlp_cores,
        links=links,
    )
    with open_mesh(
        options.device,
        ring=links.ring,
        trace_region_size=options.trace_region_size,
        wh_arch_yaml=settings.wh_arch_yaml,
    ) as mesh:
        cache = weight_cache(options, settings, checkpoint, shape)
        engines: list[Engine] = []
        try:
            for part in split_mesh(mesh, options.data_parallel):
                model = Transformer(part, spec, config, precision, checkpoint, cache, model_options)
                engines.append(
                    Engine(
                        model,
                        max_prefill_chunk=chunk,
                        enable_trace=options.enable_trace,
                        batched_prefill=options.batched_prefill,
                    )
                )
            yield Loaded(engines, config, precision, spec, checkpoint)
        finally:
            for engine in engines:
                engine.close()
            cache.close()
            checkpoint.close()


def _open(options: LoadOptions) -> Any:
    """The checkpoint the options name; random and placeholder weights need only a config."""
    if options.weights == "placeholder":
        return PlaceholderCheckpoint(load_config(options.model))
    if options.weights == "random":
        return RandomCheckpoint(load_config(options.model), options.seed)
    from models.checkpoints.open import open_checkpoint

    return open_checkpoint(options.model)


def weight_cache(
    options: LoadOptions, settings: Settings, checkpoint: Any, shape: tuple[int, int]
) -> Any:
    """Where converted weights are kept; random and placeholder weights are not worth keeping."""
    from models.checkpoints.cache_place import open_weight_cache
    from models.checkpoints.open import locate
    from models.checkpoints.weight_cache import NoCache

    if options.weights != "instruct":
        return NoCache()
    return open_weight_cache(
        checkpoint,
        locate(options.model),
        options.device,
        shape,
        padding=settings.pad_mlp_cores,
        tt_cache_path=settings.cache_path,
    )
