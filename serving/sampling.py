"""Choosing tokens for a served step: by vLLM's own sampler on the host, or on the device.

The device draws where every request of a step is greedy or has a top-k of up to 32, and wants
nothing of its logits but a token. All else (penalties, seeds, logprobs, grammars, biases) is
vLLM's code over vLLM's own batch, so a parameter means here what it means there. A request with a
seed stays on the host, so that it draws the same whoever shares its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.sampler import Sampler
from vllm.v1.structured_output.utils import apply_grammar_bitmask
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from runtime.sampling import GREEDY
from runtime.sampling import SamplingParams as OurParams

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput

GREEDY_BELOW = 1e-5  # vLLM takes temperatures under this for 0
NEUTRAL: dict[str, Any] = {
    "logprobs": None,
    "seed": None,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_p": 0.0,
    "min_tokens": 0,
    "logit_bias": None,
    "allowed_token_ids": None,
    "structured_outputs": None,
    "bad_words_token_ids": None,
    "logprob_token_ids": None,
    "extra_args": None,
}


@dataclass(frozen=True)
class Sampled:
    """Tokens by row ([] for a prompt that goes on), and what was asked of their likelihood."""

    tokens: list[list[int]]
    logprobs: Any = None


def device_params(row: SamplingParams | None) -> OurParams | None:
    """Our settings for a request, or None where it needs the host."""
    if row is None or not all(map(partial(_is_neutral, row), NEUTRAL)):
        return None
    if row.temperature < GREEDY_BELOW:
        return GREEDY
    params = OurParams(row.temperature, max(row.top_k, 0), row.top_p)
    return params if params.fits_device else None


def _is_neutral(row: SamplingParams, name: str) -> bool:
    value = getattr(row, name)
    return value == NEUTRAL[name] or value in ({}, [])


class HostSampling:
    """vLLM's persistent batch and sampler; rows are the requests of the current step."""

    def __init__(self, config: VllmConfig, users: int) -> None:
        length, block = config.model_config.max_model_len, config.cache_config.block_size
        device = torch.device("cpu")
        self.vocab_size = config.model_config.get_vocab_size()
        self.batch = InputBatch(
            max_num_reqs=users,
            max_model_len=length,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            device=device,
            vocab_size=self.vocab_size,
            block_sizes=[block],
            max_num_blocks_per_req=[-(-length // block)],
            logitsprocs=build_logitsprocs(
                config, device, False, False, config.model_config.logits_processors or ()
            ),
            logitsprocs_need_output_token_ids=bool(config.model_config.logits_processors),
        )
        self.sampler = Sampler()

    def add(self, state: CachedRequestState) -> None:
        self.batch.add_request(state)

    def remove(self, name: str) -> None:
        self.batch.remove_request(name)

    def settle(self) -> None:
        """Close the gaps that removed requests left; rows keep their order until the next step."""
        self.batch.condense()
        self.batch.refresh_metadata()

    def note(self, name: str, tokens: list[int]) -> None:
        """Write sampled tokens where penalties and processors look for them."""
        row = self.batch.req_id_to_index[name]
        start = int(self.batch.num_tokens_no_spec[row])
        self.batch.token_ids_cpu[row, start : start + len(tokens)] = tokens
        self.batch.num_tokens_no_spec[row] = start + len(tokens)

    def sample(
        self,
        logits: torch.Tensor,
        step: SchedulerOutput,
        grammar: GrammarOutput | None,
        unfinished: Sequence[int],
    ) -> Sampled:
        """Tokens of each row; rows of unfinished prompts give none, and use up no random number."""
        if grammar is not None:
            apply_grammar_bitmask(step, grammar, self.batch, logits)
        draws = [self.batch.generators[row] for row in unfinished if row in self.batch.generators]
        states = [draw.get_state() for draw in draws]
        out = self.sampler(logits, self.batch.sampling_metadata)
        for draw, state in zip(draws, states, strict=True):
            draw.set_state(state)
        tokens = out.sampled_token_ids.tolist()
        for row in unfinished:
            tokens[row] = []
        logprobs = out.logprobs_tensors
        return Sampled(tokens, None if logprobs is None else logprobs.tolists())
