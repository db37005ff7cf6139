"""The front door for any program: a model by name, its tokenizer, and requests made of prompts.

No weights are loaded and no device is opened here, so a wrong name or a prompt that is too long is
refused at once. Next: blueprint.py decides the run, loading.py loads it, generator.py answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.fields import is_there, shown
from models.numbers import counted
from runtime.requests import Request
from runtime.sampling import SamplingParams
from runtime.settings import Settings

if TYPE_CHECKING:
    from models.config import ModelConfig
    from models.kv_cache import CacheConfig
    from runtime.prompts import Prompt
    from runtime.tokenizer import Tokenizer

SAMPLE_PROMPTS = Path(__file__).resolve().parent.parent / "sample_prompts"


@dataclass(frozen=True)
class Model:
    """What is known of a model before its weights are loaded."""

    name: str  # as HF_MODEL or LLAMA_DIR gave it, or "default"
    config: ModelConfig
    tokenizer: Tokenizer


def find_model(name: str | None, *, weights: str = "instruct", vision: bool = False) -> Model:
    """Config and tokenizer of a model; None is the default one, `vision` one that takes images.

    Random weights need neither files nor network: the tokenizer then only counts like a real one.
    """
    from models.checkpoints.open import locate
    from models.registry import load_config
    from runtime.prompts import IMAGE_WORD
    from runtime.tokenizer import stand_in_tokenizer
    from runtime.tokenizer_files import load_tokenizer

    name = name or "default"
    if weights == "random" and name != "default" and not is_there(Path(name)):
        config = load_config(name, vision=vision)
        words = {IMAGE_WORD: config.vision.image_token} if config.vision else {}
        stand_in = stand_in_tokenizer(config.vocab_size, config.eos_token_ids, words)
        return Model(name, config, stand_in)
    path = locate(name).path
    config = load_config(path, vision=vision)
    return Model(name, config, load_tokenizer(path, config.eos_token_ids))


def device_of(settings: Settings, default: str = "N150") -> str:
    """The device to run as: the environment's, on hardware all there is, else the default."""
    if settings.device is None and settings.backend == "silicon":
        from backends.silicon import detected_device

        return detected_device()
    return settings.device or default


def find_prompts(name: str) -> Path:
    """A prompts file by path, or by its name in sample_prompts."""
    path = Path(name)
    if is_there(path):
        return path
    sample = SAMPLE_PROMPTS / f"{path.name.removesuffix('.json')}.json"
    if is_there(sample):
        return sample
    known = ", ".join(sorted(p.stem for p in SAMPLE_PROMPTS.glob("*.json")))
    hint = "prompts are read from a file, not from the command line; " * (name[:1] in "[{")
    raise ValueError(
        f"there is no prompts file {shown(name)}: {hint}give a path, or one of {known}"
    )


def encode_prompts(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    instruct: bool,
    max_seq_len: int,
    max_new_tokens: int,
    wraps: bool = False,
) -> list[list[int]]:
    """Token ids per user; what exceeds the model's context is cut from the left.

    `wraps`: positions are used again at the context's end, so generation needs no room of its own.
    """
    limit = model.config.max_position_embeddings - (1 if wraps else max_new_tokens)
    if limit < 1:
        raise ValueError(
            f"{max_new_tokens} tokens to generate leave no room for a prompt in the context of "
            f"{model.config.name}, {model.config.max_position_embeddings} tokens: generate less"
        )
    ids = [
        model.tokenizer.encode_clipped(prompt.text, limit, instruct=instruct) for prompt in prompts
    ]
    check_tokens(model, ids)
    longest = max(map(len, ids))
    if not wraps and longest + max_new_tokens > max_seq_len:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} generated ones do not "
            f"fit max_seq_len {max_seq_len}: raise max_seq_len, generate less or shorten the "
            "prompt (max_length)"
        )
    return ids


def check_tokens(model: Model, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse a prompt with a token for which the model has no row."""
    rows, vision = model.config.vocab_size, model.config.vision
    known = {vision.image_token} if vision else set()
    for token in set().union(*prompts) - known:
        if token >= rows:
            text = model.tokenizer.decode([token], skip_special=False)
            raise ValueError(
                f"{model.name}: a prompt has token {token} ({shown(text)}), but the model has "
                f"tokens 0 to {rows - 1} only: leave that text out, or use its own tokenizer"
            )


def make_requests(
    prompts: Sequence[Sequence[int]],
    sampling: Sequence[SamplingParams],
    *,
    max_new_tokens: int,
    wrap_at: int | None = None,
) -> list[Request]:
    """One request per user, sampled by the settings in turn; positions may wrap at `wrap_at`."""
    requests = []
    for user, prompt in enumerate(prompts):
        limit = None if wrap_at is None else min(wrap_at, len(prompt) + 1)
        params = sampling[user % len(sampling)]
        requests.append(Request(prompt, max_new_tokens, params, limit))
    return requests


def check_pages(requests: Sequence[Request], cache: CacheConfig, batch_size: int) -> None:
    """Refuse a page budget that cannot hold all users of a data-parallel group at once."""
    block = cache.block_size
    if block is None:
        return
    needs = [-(-request.cache_length // block) for request in requests]
    needed = max(sum(needs[i : i + batch_size]) for i in range(0, len(needs), batch_size))
    if needed > cache.num_blocks:
        raise ValueError(
            f"the page budget is too small: {counted(batch_size, 'user')} must have {needed} "
            f"blocks of {block} tokens, page_params give {cache.num_blocks}: use --page_params "
            f'\'{{"block_size": {block}, "max_num_blocks": {needed}}}\' or generate less'
        )
