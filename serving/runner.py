"""One step of vLLM's scheduler on our engines: prompts are prefilled, everyone else decodes.

vLLM owns the pages: its block tables are the engines' page tables. With several engines their pages
are numbered one engine after the other, so a request's pages say whose it is (scheduler.py). It
keeps its slot from its first step until it ends or is preempted. Sampling is sampling.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from runtime.paging import NO_BLOCK
from runtime.requests import in_turns
from runtime.sampling import Draws, SamplingParams
from serving.engines import placed
from serving.sampling import HostSampling, Sampled, device_params

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, NewRequestData, SchedulerOutput

    from runtime.requests import Engine


@dataclass
class _Request:
    """A request that vLLM has told us of; `slot` counts through all engines."""

    state: CachedRequestState
    device_params: SamplingParams | None  # None: the host samples
    images: Sequence[Any] = ()
    slot: int | None = None
    draws: Draws = field(default_factory=Draws)

    @property
    def blocks(self) -> list[int]:
        return self.state.block_ids[0]

    @property
    def tokens(self) -> list[int]:
        return [*(self.state.prompt_token_ids or ()), *self.state.output_token_ids]


def _images_of(new: NewRequestData) -> Sequence[Any]:
    if not new.mm_features:
        return ()
    from serving.vision_model import images_of_request  # only a model that takes images has some

    return images_of_request(new.mm_features)


@dataclass(frozen=True)
class _Work:
    """A request's part of this step: its tokens from `start` to `end` (positions)."""

    request: _Request
    start: int
    end: int

    @property
    def is_decode(self) -> bool:
        return 0 < self.start == self.end - 1 == self.request.state.num_tokens - 1

    @property
    def is_unfinished(self) -> bool:
        """A chunk of a prompt: what follows it is known already."""
        return self.end < self.request.state.num_tokens


class Runner:
    """Requests, slots and page tables of one worker."""

    def __init__(
        self, engines: list[Engine], config: VllmConfig, *, sample_on_device: bool = False
    ) -> None:
        self.engines = engines
        self.slots_per_engine = engines[0].max_batch_size
        self.block_size = config.cache_config.block_size
        self.sample_on_device = sample_on_device
        width = -(-config.model_config.max_model_len // self.block_size)
        self.tables = [
            torch.full((self.slots_per_engine, width), NO_BLOCK, dtype=torch.int32) for _ in engines
        ]
        self.free = [list(reversed(range(self.slots_per_engine))) for _ in engines]
        self.requests: dict[str, _Request] = {}
        self.host = HostSampling(config, len(engines) * self.slots_per_engine)
        self._step: SchedulerOutput | None = None
        self._work: dict[str, _Work] = {}
        self._found: torch.Tensor | None = None  # logits [n, vocab], or tokens [n] of the device

    # --- what vLLM says

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run the model; None where `sample` has to follow."""
        self._update(step)
        if not step.total_num_scheduled_tokens:
            self._step = None
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._step = step
        batch = self.host.batch
        self._work = {name: self._work_of(name, step) for name in batch.req_ids}
        rows = [self._work[name] for name in batch.req_ids]
        decodes = [i for i, work in enumerate(rows) if work.is_decode]
        prompts = [i for i, work in enumerate(rows) if not work.is_decode]
        fit = all(work.request.device_params is not None for work in rows)
        if self.sample_on_device and fit and not prompts:
            self._found = self._decode(rows, on_device=True)
            return None
        logits = torch.empty(len(rows), self.engines[0].vocab_size)
        if prompts:
            logits[prompts] = self._prefill([rows[i] for i in prompts])
        if decodes:
            logits[decodes] = self._decode([rows[i] for i in decodes])
        self._found = logits
        return None

    def sample(self, grammar: GrammarOutput | None) -> ModelRunnerOutput:
        """Choose the tokens of the step that `execute` ran."""
        step, found = self._step, self._found
        if step is None or found is None:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._step = self._found = None
        names = list(self.host.batch.req_ids)
        unfinished = [i for i, name in enumerate(names) if self._work[name].is_unfinished]
        if found.dim() == 1:
            sampled = Sampled([[token] for token in found.tolist()])
        else:
            sampled = self.host.sample(found, step, grammar, unfinished)
        for name, tokens in zip(names, sampled.tokens, strict=True):
            self.host.note(name, tokens)
            self.requests[name].state.output_token_ids.extend(tokens)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=sampled.tokens,
            logprobs=sampled.logprobs,
        )

    # --- who is here

    def _update(self, step: SchedulerOutput) -> None:
        """Forget who left, meet who came, and learn of new pages."""
        for name in step.finished_req_ids:
            request = self.requests.pop(name, None)
            if request is not None:
                self._release(request)
            self.host.remove(name)
        for name in step.preempted_req_ids or ():
            if name in self.requests:
                self._release(self.requests[name])
        for name in set(self.host.batch.req_id_to_index).difference(step.num_scheduled_tokens):
            self.host.remove(name)
        for new in step.scheduled_new_reqs:
            if new.req_id in self.requests:  # resumed, where vLLM sends those as new ones
                self._release(self.requests[new.req_id])
                self.host.remove(new.req_id)
            self.requests[new.req_id] = _Request(
                self._state(new), device_params(new.sampling_params), _images_of(new)
            )
        self._update_known(step)
        for name in step.num_scheduled_tokens:
            request = self.requests[name]
            if request.slot is None:
                request.slot = self._take_slot(request)
                self._write_table(request)
                self._show_images(request)
            if name not in self.host.batch.req_id_to_index:
                self.host.add(request.state)
        self.host.settle()

    def _update_known(self, step: SchedulerOutput) -> None:
        known = step.scheduled_cached_reqs
        for i, name in enumerate(known.req_ids):
            request, blocks = self.requests[name], known.new_block_ids[i]
            request.state.num_computed_tokens = known.num_computed_tokens[i]
            if name in known.resumed_req_ids:
                assert blocks is not None, "a resumed request has new pages"
                request.state.block_ids = (list(blocks[0]),)
            elif blocks is not None:
                request.blocks.extend(blocks[0])
            else:
                continue
            if request.slot is not None:
                self._write_table(request)

    def _state(self, new: NewRequestData) -> CachedRequestState:
        assert new.sampling_params is not None and new.prompt_token_ids is not None
        prompt = list(new.prompt_token_ids)
        generator = None
        if new.sampling_params.seed is not None:
            generator = torch.Generator()
            generator.manual_seed(new.sampling_params.seed)
        return CachedRequestState(
            req_id=new.req_id,
            prompt_token_ids=prompt,
            mm_features=[],
            sampling_params=new.sampling_params,
            generator=generator,
            block_ids=(list(new.block_ids[0]),),
            num_computed_tokens=new.num_computed_tokens,
            output_token_ids=list(new.prefill_token_ids or prompt)[len(prompt) :],
        )

    def _take_slot(self, request: _Request) -> int:
        """A free slot of the engine that has the request's pages."""
        engine = request.blocks[0] // self.engines[0].num_blocks
        assert self.free[engine], "vLLM runs no more than max_num_seqs requests"
        return engine * self.slots_per_engine + self.free[engine].pop()

    def _release(self, request: _Request) -> None:
        if request.slot is None:
            return
        engine, slot = divmod(request.slot, self.slots_per_engine)
        self.tables[engine][slot] = NO_BLOCK
        self.free[engine].append(slot)
        if request.images:
            seeing: Any = self.engines[engine]
            seeing.detach(slot)
        request.slot = None

    def _show_images(self, request: _Request) -> None:
        """Tell the engine of a request's images; their states stay for its next chunks."""
        if request.images:
            assert request.slot is not None
            engine, slot = divmod(request.slot, self.slots_per_engine)
            seeing: Any = self.engines[engine]
            seeing.shares_images = True
            seeing.attach(slot, request.tokens, request.images)

    def _write_table(self, request: _Request) -> None:
        assert request.slot is not None
        engine, slot = divmod(request.slot, self.slots_per_engine)
        row, first = self.tables[engine][slot], engine * self.engines[engine].num_blocks
        row[: len(request.blocks)] = torch.tensor(request.blocks, dtype=torch.int32) - first
        row[len(request.blocks) :] = NO_BLOCK

    # --- what is run

    def _work_of(self, name: str, step: SchedulerOutput) -> _Work:
        request = self.requests[name]
        start = request.state.num_computed_tokens
        return _Work(request, start, start + step.num_scheduled_tokens[name])

    def _by_engine(self, rows: list[_Work]) -> dict[int, list[tuple[int, int, _Work]]]:
        """(row, slot in its engine, work), by engine."""
        parts: dict[int, list[tuple[int, int, _Work]]] = {}
        for i, work in enumerate(rows):
            assert work.request.slot is not None
            engine, slot = divmod(work.request.slot, self.slots_per_engine)
            parts.setdefault(engine, []).append((i, slot, work))
        return parts

    def _prefill(self, rows: list[_Work]) -> torch.Tensor:
        """Logits [n, vocab] of each row's last token.

        What is before a chunk in its first page is the request's own, and is written again.
        """
        logits = torch.empty(len(rows), self.engines[0].vocab_size)
        sent, parts = [], self._by_engine(rows)
        for index, part in parts.items():
            block = self.block_size
            steps = self.engines[index].prefilling(
                [work.request.tokens[: work.end] for _, _, work in part],
                slots=[slot for _, slot, _ in part],
                page_table=self.tables[index],
                start_positions=[work.start // block * block for _, _, work in part],
            )
            sent.append(steps)
        for part, found in zip(parts.values(), in_turns(sent), strict=True):
            logits[[i for i, _, _ in part]] = found
        return logits

    def _decode(self, rows: list[_Work], *, on_device: bool = False) -> torch.Tensor:
        """Logits [n, vocab] of each row's next token, or the tokens [n] that the device chose."""
        found: list[torch.Tensor | None] = [None] * len(rows)
        for engine, part in self._by_engine(rows).items():
            tokens = torch.zeros(self.slots_per_engine, dtype=torch.int32)
            positions = torch.full((self.slots_per_engine,), -1, dtype=torch.int32)
            users = {}
            for _, slot, work in part:
                tokens[slot] = work.request.state.get_token_id(work.start)
                positions[slot] = work.start
                if work.request.device_params is not None:
                    users[slot] = work.request.device_params, work.request.draws
            sampling = placed(users, self.slots_per_engine) if on_device else None
            out = self.engines[engine].decode(
                tokens, positions, page_table=self.tables[engine], sampling=sampling
            )
            for i, slot, _ in part:
                found[i] = out[slot]
        return torch.stack([row for row in found if row is not None])
