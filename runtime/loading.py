"""From a blueprint to engines: weights, mesh, one engine per data-parallel group.

Demos, the dry run and the tools all come through `load_engines`; what is decided before is
blueprint.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import allocator, configure_emulator
from backends.mesh import open_mesh, split_mesh
from models.checkpoints import RandomCheckpoint, ShapeCheckpoint
from models.config import ModelConfig
from models.registry import load_config
from models.transformer import Transformer
from runtime.blueprint import Blueprint, LoadOptions, draw
from runtime.engine import Engine
from runtime.settings import Settings

MOST_REDRAWN = 1 << 28  # random numbers that are drawn again at every start


@dataclass(frozen=True)
class Loaded:
    """Engines of one run, one per data-parallel group, and what they were made of."""

    engines: list[Engine]
    plan: Blueprint
    checkpoint: Any

    @property
    def config(self) -> ModelConfig:
        """The whole model's, whatever layers were built."""
        return self.plan.config


@contextmanager
def load_engines(options: LoadOptions, settings: Settings) -> Iterator[Loaded]:
    """Open the mesh, load the model on every data group, close everything in the end."""
    configure_emulator(torch_device=settings.emulator_device, num_threads=settings.emulator_threads)
    checkpoint = _open(options)
    plan = draw(options, settings, checkpoint.config)
    plan.check_fits()
    with open_mesh(
        options.device,
        ring=plan.links.ring,
        trace_region_size=options.trace_region_size,
        worker_l1_size=options.worker_l1_size,
        wh_arch_yaml=settings.wh_arch_yaml,
        from_column=plan.spec.is_from_column,
    ) as mesh:
        cache = weight_cache(plan, settings, checkpoint)
        engines: list[Engine] = []
        try:
            for part in split_mesh(mesh, options.data_parallel):
                engines.append(build_engine(plan, part, checkpoint, cache))
            allocator.give_back()  # what converting weights took
            yield Loaded(engines, plan, checkpoint)
        finally:
            for engine in engines:
                engine.close()
            cache.close()
            checkpoint.close()


def build_engine(plan: Blueprint, mesh: Any, checkpoint: Any, cache: Any) -> Engine:
    """The model of one data-parallel group on its mesh, ready to run."""
    model_type: type[Transformer] = Transformer
    engine_type: type[Engine] = Engine
    if plan.options.images:
        from models.vision_transformer import VisionTransformer
        from runtime.image_engine import ImageEngine

        model_type, engine_type = VisionTransformer, ImageEngine
    model = model_type(
        mesh, plan.spec, plan.config, plan.precision, checkpoint, cache, plan.model_options
    )
    return engine_type(
        model,
        max_prefill_chunk=plan.max_prefill_chunk,
        enable_trace=plan.options.enable_trace,
        batched_prefill=plan.options.batched_prefill,
    )


def _open(options: LoadOptions) -> Any:
    """The checkpoint the options name; random and placeholder weights need only a config."""
    vision = options.images > 0
    if options.weights == "placeholder":
        return ShapeCheckpoint(load_config(options.model, vision=vision))
    if options.weights == "random":
        return RandomCheckpoint(load_config(options.model, vision=vision), options.seed)
    from models.checkpoints.open import open_checkpoint

    return open_checkpoint(options.model, vision=vision)


def weight_cache(plan: Blueprint, settings: Settings, checkpoint: Any) -> Any:
    """Where converted weights are kept; placeholders and few random ones are not worth keeping."""
    from models.checkpoints.cache_place import open_weight_cache
    from models.checkpoints.open import Location, locate
    from models.checkpoints.weight_cache import NoCache

    options = plan.options
    if options.weights == "instruct":
        location = locate(options.model)
    elif options.weights == "random" and checkpoint.elements > MOST_REDRAWN:
        location = Location(Path(), f"random/{checkpoint.config.name}", is_path=False)
    else:
        return NoCache()
    return open_weight_cache(
        checkpoint,
        location,
        options.device,
        plan.mesh_shape,
        padding=plan.sharding.padding,
        tt_cache_path=settings.cache_path,
    )
