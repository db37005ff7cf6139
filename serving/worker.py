"""The life of a served model, as vLLM runs it: device, weights, pages, warm-up, steps, the end.

The backend is chosen before anything that imports TT-NN; what a step does is runner.py's.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loguru import logger
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

import backends
from runtime.settings import Settings
from serving.engines import warm_up
from serving.launch import page_count
from serving.model_files import checkpoint_of
from serving.options import load_options, serving_device
from serving.platform import options_of
from serving.runner import Runner

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

    from runtime.loading import Loaded

LAYER = "layers"  # vLLM sizes pages by layers; ours are all alike, so one stands for them


class TTWorker(WorkerBase):
    """One model on one mesh, for as long as vLLM's engine process lives."""

    def init_device(self) -> None:
        self.settings = Settings.from_env()
        self.options = options_of(self.vllm_config)
        spec = serving_device(self.options, self.settings)
        backend = backends.select(self.settings.backend, spec.name)
        module = backends.ttnn.__name__
        logger.info(f"serving on {backend} ({module}) as {spec.name}")
        for notice in self.options.notices():
            logger.warning(notice)
        self.stack = ExitStack()

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        from runtime.loading import load_engines

        model, scheduler = self.model_config, self.scheduler_config
        dummy = load_dummy_weights or self.load_config.load_format == "dummy"
        weights = ("placeholder" if backends.selected() == "dry-run" else "random") if dummy else ""
        wanted = load_options(
            self.options,
            self.settings,
            model=checkpoint_of(model.model, model.hf_config),
            weights=weights or "instruct",
            users=scheduler.max_num_seqs,
            max_seq_len=model.max_model_len,
            block_size=self.cache_config.block_size,
        )
        if model.is_multimodal_model:
            from serving.vision_model import most_images

            wanted = replace(wanted, images=most_images(model))
        pages = replace(wanted.cache, num_blocks=self._num_blocks(wanted))
        loaded: Loaded = self.stack.enter_context(
            load_engines(replace(wanted, cache=pages), self.settings)
        )
        self.loaded = loaded
        mesh, short = loaded.plan.mesh_shape, loaded.engines[0].short_context
        if short:  # vLLM's own models choose by --max-model-len, too: its prefix cache is one
            logger.warning(
                f"{loaded.config.name} has other rotary factors for contexts of up to {short} "
                f"tokens: requests get those only if --max_model_len is at most {short}"
            )
        logger.info(
            f"{loaded.config.name}: {len(loaded.engines)} group(s) of {mesh[0]}x{mesh[1]} chips, "
            f"each with {loaded.engines[0].max_batch_size} users and {pages.num_blocks} pages of "
            f"{pages.block_size} tokens"
        )

    def _num_blocks(self, wanted: Any) -> int:
        """Pages of each group's cache."""
        from models.checkpoints.open import open_checkpoint
        from models.registry import load_config
        from runtime.blueprint import draw

        vision = wanted.images > 0
        config = None
        if wanted.weights != "instruct":
            config = load_config(wanted.model, vision=vision)
        if config is None:
            checkpoint = open_checkpoint(wanted.model, vision=vision)
            config = checkpoint.config
            checkpoint.close()
        plan = draw(wanted, self.settings, config)
        return page_count(plan, self.cache_config.num_gpu_blocks_override)

    # --- pages

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        model = self.model_config
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=model.get_num_kv_heads(self.parallel_config),
            head_size=model.get_head_size(),
            dtype=model.dtype,
        )
        return {LAYER: spec}

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["LBNHC"]  # no tensor of vLLM's has it: the pages are the engines' own

    def determine_available_memory(self) -> int:
        """As many bytes as make vLLM count the pages that the engines have."""
        return self.get_kv_cache_spec()[LAYER].page_size_bytes * self._all_pages()

    def _all_pages(self) -> int:
        return sum(engine.num_blocks for engine in self.loaded.engines)

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        count, have = kv_cache_config.num_blocks, self._all_pages()
        assert count == have, f"vLLM counts {count} pages, the engines have {have}"
        mode = self.options.sample_on_device_mode
        self.runner = Runner(
            list(self.loaded.engines), self.vllm_config, sample_on_device=mode is not None
        )

    def update_max_model_len(self, max_model_len: int) -> None:
        self.model_config.max_model_len = max_model_len

    # --- steps

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Before vLLM says that it is ready."""
        begin = time.perf_counter()
        for engine in self.loaded.engines:
            warm_up(
                engine,
                sample_on_device=self.runner.sample_on_device,
                warm_prompts=self.options.warm_prompts,
            )
        seconds = time.perf_counter() - begin
        logger.info(f"warm after {seconds:.1f} s")
        return CompilationTimes(language_model=seconds, encoder=0.0)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        return self.runner.execute(scheduler_output)

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> ModelRunnerOutput:
        return self.runner.sample(grammar_output)

    def synchronize_device(self) -> None:
        """A step ends when its logits are on the host."""

    def shutdown(self) -> None:
        """Close the mesh; the cache's pages go with it."""
        self.stack.close()
        logger.info("the device is closed")
