"""What vLLM is told of the device: which worker to start, and which of its settings do not apply.

Runs in every process of vLLM, the server's too, so nothing here opens a device, loads weights or
imports what imports TT-NN: the worker chooses the backend first.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger
from prometheus_client import Info
from vllm.exceptions import VLLMValidationError
from vllm.platforms.interface import Platform, PlatformEnum

from models.sharding import TILE
from runtime.prompts import IMAGE_WORD
from runtime.settings import Settings
from serving.launch import check_vllm
from serving.options import MOST_USERS, ServeOptions, serving_device

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def options_of(config: VllmConfig) -> ServeOptions:
    """Our part of vLLM's additional_config."""
    extra = config.additional_config
    return ServeOptions.from_dict((extra if isinstance(extra, dict) else {}).get("tt", {}))


class TTPlatform(Platform):
    """TT-NN devices, real, dry or emulated."""

    _enum = PlatformEnum.OOT
    device_name = "tt"
    device_type = "cpu"  # the tensors that vLLM itself makes, for sampling, are the host's
    dispatch_key = "CPU"
    simple_compile_backend = "eager"
    image_token: int | None = None  # of the model that is served, if it is one that knows images

    def uses_host_device_handling(self) -> bool:
        return True

    @classmethod
    def import_kernels(cls) -> None:
        """vLLM's own kernels are not built."""

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return serving_device(ServeOptions(), Settings.from_env()).name

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        spec = serving_device(ServeOptions(), Settings.from_env())
        return spec.dram_banks * spec.dram_bank_bytes

    @classmethod
    def inference_mode(cls) -> Any:
        return torch.no_grad()

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """The block size is chosen below, not by an attention backend."""

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Choose our worker and switch off what it has no use for; called more than once."""
        from vllm.config import CompilationMode, CUDAGraphMode  # it imports the platform itself

        options = options_of(vllm_config)
        _refuse(vllm_config)
        if vllm_config.model_config is not None:
            hf_config = vllm_config.model_config.hf_config
            cls.image_token = getattr(hf_config, "image_token_index", None)
        parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
        if parallel.worker_cls == "auto":
            parallel.worker_cls = "serving.worker.TTWorker"
        scheduler.async_scheduling = False
        if options.data_parallel > 1 and scheduler.scheduler_cls is None:
            scheduler.scheduler_cls = "serving.scheduler.GroupScheduler"
        most = MOST_USERS * options.data_parallel
        if scheduler.max_num_seqs > most:
            logger.info(f"{scheduler.max_num_seqs} sequences at a time are lowered to {most}")
            scheduler.max_num_seqs = most
        compilation = vllm_config.compilation_config
        compilation.mode, compilation.cudagraph_mode = CompilationMode.NONE, CUDAGraphMode.NONE
        cache = vllm_config.cache_config
        if not cache.user_specified_block_size:
            cache.block_size = TILE
        settings = Settings.from_env()
        spec = serving_device(options, settings)
        is_grid = min(spec.mesh_shape) > 1
        if cache.enable_prefix_caching and (is_grid or options.data_parallel > 1):
            # a page written in decode may be whole only in the column, or group, that owns the user
            logger.info("prefix caching is off: users' pages lie in different parts of the mesh")
            cache.enable_prefix_caching = False
        _device_info().info(
            {
                "backend": settings.backend,
                "device": spec.name,
                "mesh": "x".join(map(str, spec.mesh_shape)),
                "data_parallel": str(options.data_parallel),
                "optimizations": options.optimizations,
            }
        )

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Refuse what no step could do: an exception in the worker would end the server.

        Of images that lie in cached pages the worker would not be given the pixels, so prompts
        with images are computed whole.
        """
        images = len(processed_inputs.get("mm_hashes", {}).get("image", ()))
        if images:
            params.skip_reading_prefix_cache = True
        tokens = list(processed_inputs.get("prompt_token_ids") or ())
        if cls.image_token is not None and tokens.count(cls.image_token) != images:
            raise VLLMValidationError(
                f"the prompt has {tokens.count(cls.image_token)} {IMAGE_WORD} and {images} images: "
                "give one for each",
                parameter="prompt",
            )
        if getattr(params, "prompt_logprobs", None) is not None:
            raise VLLMValidationError(
                "prompt_logprobs is not supported: prefill keeps only a prompt's last logits; "
                "leave it out (logprobs of generated tokens are supported)",
                parameter="prompt_logprobs",
            )


@cache
def _device_info() -> Info:
    """Among vLLM's metrics: what serves, for clients that write it down (serving/figures.py)."""
    return Info("tt_device", "Backend and device that serve, and how they are divided")


def _refuse(config: VllmConfig) -> None:
    """What vLLM could be asked for and we do not have; and another version than ours."""
    check_vllm()
    parallel = config.parallel_config
    reasons = {
        "--speculative-config": config.speculative_config is not None,
        "--enable-lora": config.lora_config is not None,
        "--kv-transfer-config": config.kv_transfer_config is not None,
        "--tensor-parallel-size (MESH_DEVICE names the chips)": parallel.tensor_parallel_size > 1,
        "--pipeline-parallel-size": parallel.pipeline_parallel_size > 1,
        "--data-parallel-size (use data_parallel in the TT config)": parallel.data_parallel_size
        > 1,
    }
    found = [flag for flag, asked in reasons.items() if asked]
    if found:
        raise ValueError(f"not supported on TT devices: {', '.join(found)}; leave it out")
