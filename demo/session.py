"""Everything a demo needs before its first token: settings, prompts, tokenizer, engines, generator.

Cheap checks come first, so that a wrong option is refused before weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from loguru import logger

from demo.cases import Case
from runtime.settings import Settings

if TYPE_CHECKING:
    from models.config import ModelConfig
    from runtime.generator import Generator, Request
    from runtime.loading import Loaded
    from runtime.prompts import Prompt, PromptEntry
    from runtime.tokenizer import Tokenizer

AnyCase = TypeVar("AnyCase", bound=Case)
SAMPLE_PROMPTS = Path(__file__).resolve().parent.parent / "sample_prompts"


@dataclass(frozen=True)
class Model:
    """What is known of a model before its weights are loaded."""

    name: str  # as HF_MODEL or LLAMA_DIR gave it, or "default"
    config: ModelConfig
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Session:
    """A loaded model, ready to answer."""

    case: Case
    settings: Settings
    device: str
    model: Model
    loaded: Loaded
    generator: Generator


def find_model(case: Case, settings: Settings) -> Model:
    """Config and tokenizer of the model to run; random weights need neither files nor network."""
    from models.checkpoints.open import locate
    from models.registry import load_config
    from runtime.tokenizer import stand_in_tokenizer
    from runtime.tokenizer_files import load_tokenizer

    name = settings.checkpoint or "default"
    if case.weights == "random" and name != "default" and not Path(name).exists():
        config = load_config(name)
        return Model(name, config, stand_in_tokenizer(config.vocab_size, config.eos_token_ids))
    path = locate(name).path
    config = load_config(path)
    return Model(name, config, load_tokenizer(path, config.eos_token_ids))


def find_prompts(name: str) -> Path:
    """A prompts file by path, or by its name in sample_prompts."""
    path = Path(name)
    if path.is_file():
        return path
    sample = SAMPLE_PROMPTS / f"{path.name.removesuffix('.json')}.json"
    if sample.is_file():
        return sample
    known = ", ".join(sorted(p.stem for p in SAMPLE_PROMPTS.glob("*.json")))
    raise ValueError(f"there is no prompts file {name}: give a path, or one of {known}")


def fit_context(
    case: AnyCase, given: dict[str, Any], config: ModelConfig, entries: Sequence[PromptEntry]
) -> AnyCase:
    """Lower a default context length to the model's; skip where the case's prompts need more."""
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


def encode_prompts(case: Case, model: Model, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids per user; what exceeds the model's context is cut from the left."""
    limit = model.config.max_position_embeddings - case.max_generated_tokens
    if case.stress_test:  # positions wrap: generation needs no room of its own
        limit = model.config.max_position_embeddings - 1
    ids = [
        model.tokenizer.encode_clipped(prompt.text, limit, instruct=case.instruct)
        for prompt in prompts
    ]
    longest = max(map(len, ids))
    if not case.stress_test and longest + case.max_generated_tokens > case.max_seq_len:
        raise ValueError(
            f"a prompt of {longest} tokens and {case.max_generated_tokens} generated ones do not "
            f"fit max_seq_len {case.max_seq_len}: raise --max_seq_len, lower "
            "--max_generated_tokens or shorten the prompt (max_length)"
        )
    return ids


def make_requests(case: Case, prompts: Sequence[Sequence[int]]) -> list[Request]:
    """One request per user, sampled by the case's settings."""
    from runtime.generator import Request

    sampling = case.sampling_params
    requests = []
    for user, prompt in enumerate(prompts):
        if isinstance(sampling, tuple):
            params = sampling[user % len(sampling)]
        else:
            params = sampling.for_user(user)
        limit = min(case.max_seq_len, len(prompt) + 1) if case.stress_test else None
        requests.append(Request(prompt, case.max_generated_tokens, params, limit))
    return requests


def check_pages(case: Case, requests: Sequence[Request]) -> None:
    """Refuse a page budget that cannot hold all users of a data-parallel group at once."""
    if not case.paged_attention:
        return
    pages = case.page_params
    needs = [-(-request.cache_length // pages.block_size) for request in requests]
    groups = [needs[i : i + case.batch_size] for i in range(0, len(needs), case.batch_size)]
    needed = max(map(sum, groups))
    if needed > pages.max_num_blocks:
        raise ValueError(
            f"the page budget is too small: {case.batch_size} users need {needed} blocks of "
            f"{pages.block_size} tokens, page_params give {pages.max_num_blocks}: use "
            f'--page_params \'{{"block_size": {pages.block_size}, "max_num_blocks": {needed}}}\' '
            "or generate less"
        )


def device_of(case: Case, settings: Settings) -> str:
    """The device to run as: the environment's, on hardware all there is, else the case's."""
    if settings.device is None and settings.backend == "silicon":
        from backends.silicon import detected_device

        return detected_device()
    return settings.device or case.default_device


@contextmanager
def open_session(case: Case, settings: Settings, model: Model) -> Iterator[Session]:
    """Load the model on the device and make a generator for it."""
    from demo.progress import ShownGenerator
    from models.kv_cache import CacheConfig
    from runtime.blueprint import LoadOptions
    from runtime.loading import load_engines

    pages = case.page_params
    device = device_of(case, settings)
    options = LoadOptions(
        model=model.name,
        device=device,
        weights=case.weights,
        optimizations=case.optimizations,
        decoder_config_file=case.decoder_config_file,
        max_batch_size=case.batch_size,
        max_seq_len=case.max_seq_len,
        cache=CacheConfig(pages.block_size if case.paged_attention else None, pages.max_num_blocks),
        layers=range(case.num_layers) if case.num_layers else None,
        data_parallel=case.data_parallel,
        enable_trace=case.enable_trace,
    )
    with load_engines(options, settings) as loaded:
        generator = ShownGenerator(
            loaded.engines,
            eos_ids=model.tokenizer.eos_ids if case.stop_at_eos else (),
            share_prefixes=case.share_prefixes,
            share_answers=not loaded.engines[0].model.sharding.is_2d,
            # comparing logits needs them on the host
            sample_on_device=case.sample_on_device and not case.pcc_check,
            log_probs=case.log_probs,
        )
        yield Session(case, settings, device, model, loaded, generator)
