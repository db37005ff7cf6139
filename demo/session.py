"""A case of the demos put to the door of runtime/find.py, and the loaded model that answers it.

Cheap checks come first, so that a wrong option is refused before weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from loguru import logger

from demo.cases import Case
from runtime.find import Model, device_of
from runtime.settings import Settings

if TYPE_CHECKING:
    from models.config import ModelConfig
    from models.kv_cache import CacheConfig
    from runtime.generator import Generator
    from runtime.loading import Loaded
    from runtime.prompts import PromptEntry

AnyCase = TypeVar("AnyCase", bound=Case)


@dataclass(frozen=True)
class Session:
    """A loaded model, ready to answer."""

    case: Case
    settings: Settings
    device: str
    model: Model
    loaded: Loaded
    generator: Generator


def fit_context(
    case: AnyCase, given: dict[str, Any], config: ModelConfig, entries: Sequence[PromptEntry]
) -> AnyCase:
    """The case, its default context lowered to the model's; skips where its prompts need more."""
    context = config.max_position_embeddings
    if case.max_seq_len <= context:
        return case
    if "max_seq_len" in given:
        raise ValueError(
            f"--max_seq_len {case.max_seq_len} is longer than the context of {config.name}: "
            f"use at most {context}"
        )
    wanted = max((entry.declared_tokens for entry in entries), default=0)
    wanted += case.max_generated_tokens
    if wanted > context and not case.stress_test:
        pytest.skip(
            f"{case.id} needs a context of {wanted} tokens, {config.name} has {context}: shorten "
            f"it with --max_seq_len {context} (and --max_generated_tokens)"
        )
    logger.info(f"max_seq_len {case.max_seq_len} is lowered to {config.name}'s context, {context}")
    return replace(case, max_seq_len=context)


def cache_of(case: Case) -> CacheConfig:
    """Size of the case's KV cache."""
    from models.kv_cache import CacheConfig

    pages = case.page_params
    return CacheConfig(pages.block_size if case.paged_attention else None, pages.max_num_blocks)


@contextmanager
def open_session(
    case: Case, settings: Settings, model: Model, *, prompts_by_decode: bool = False
) -> Iterator[Session]:
    """Load the model on the device and make a generator for it."""
    from demo.progress import ShownGenerator, ShownImageGenerator
    from runtime.blueprint import LoadOptions
    from runtime.loading import load_engines

    device = device_of(settings, case.default_device)
    options = LoadOptions(
        model=model.name,
        device=device,
        weights=case.weights,
        optimizations=case.optimizations,
        decoder_config_file=case.decoder_config_file,
        max_batch_size=case.batch_size,
        max_seq_len=case.max_seq_len,
        cache=cache_of(case),
        layers=range(case.num_layers) if case.num_layers else None,
        data_parallel=case.data_parallel,
        enable_trace=case.enable_trace,
        images=case.images,
    )
    kind = ShownImageGenerator if case.images else ShownGenerator
    with load_engines(options, settings) as loaded:
        generator = kind(
            loaded.engines,
            eos_ids=model.tokenizer.eos_ids if case.stop_at_eos else (),
            share_prefixes=case.share_prefixes,
            share_answers=not loaded.engines[0].model.sharding.is_2d,
            # comparing logits needs them on the host
            sample_on_device=case.sample_on_device and not case.pcc_check,
            log_probs=case.log_probs,
            prompts_by_decode=prompts_by_decode,
        )
        yield Session(case, settings, device, model, loaded, generator)
