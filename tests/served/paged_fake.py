"""An engine without a model, whose next token depends on every token that its pages hold.

So a wrong page, a stale page or another user's page gives another answer: `expected` says what
vLLM must answer, from the prompt alone. Runs under vLLM in the test's own process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm import EngineArgs
from vllm.v1.engine.llm_engine import LLMEngine

from runtime.requests import Steps
from runtime.sampling import DeviceSampling
from serving.options import group_batch
from serving.platform import options_of
from serving.worker import TTWorker

VOCAB, BLOCK = 256, 32
PAGES, USERS, CONTEXT = 48, 8, 512  # far fewer pages than 8 users may need: some are preempted


def next_token(tokens: Sequence[int]) -> int:
    """Of a whole text; order counts."""
    value = 0
    for token in tokens:
        value = (value * 31 + token + 7) % 65_521
    return value % VOCAB


def expected(prompt: Sequence[int], count: int) -> list[int]:
    """The answer of `count` tokens."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class PagedFake:
    """What runtime/requests.py asks of an engine, on pages of plain token ids."""

    max_seq_len, block_size = CONTEXT, BLOCK
    max_prefill_chunk, vocab_size, supports_device_sampling = 128, VOCAB, True
    short_context = 0
    height = 100.0  # of the one token's logit over all others: no temperature draws another

    def __init__(self, users: int = USERS, pages: int = PAGES) -> None:
        self.max_batch_size, self.num_blocks = users, pages
        self.pages = torch.full((pages, BLOCK), -1, dtype=torch.int64)
        self.decodes_on_device = self.chunks = 0

    def expect(self, slot: int, *, is_long: bool) -> None:
        pass

    def _write(self, row: torch.Tensor, start: int, tokens: Sequence[int]) -> None:
        for position, token in enumerate(tokens, start):
            page = int(row[position // BLOCK])
            assert page >= 0, f"position {position} has no page"
            self.pages[page, position % BLOCK] = token

    def _read(self, row: torch.Tensor, length: int) -> list[int]:
        return self.pages[row[: -(-length // BLOCK)].long()].flatten()[:length].tolist()

    def prefilling(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        page_table: torch.Tensor | None = None,
        start_positions: Sequence[int] | None = None,
    ) -> Steps[torch.Tensor]:
        assert page_table is not None
        starts = start_positions or [0] * len(tokens)
        logits = torch.zeros(len(tokens), VOCAB)
        yield
        for i, (text, slot, start) in enumerate(zip(tokens, slots, starts, strict=True)):
            assert start % BLOCK == 0 and start < len(text)
            self.chunks += bool(start)
            self._write(page_table[slot], start, text[start:])  # what is before may be others'
            # a whole prompt is attended to as it passes, a chunk by what the pages hold before it
            known = self._read(page_table[slot], len(text)) if start else text
            logits[i, next_token(known)] = self.height
        return logits

    def decode(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        page_table: torch.Tensor | None = None,
        sampling: DeviceSampling | None = None,
        more: bool = False,
    ) -> torch.Tensor:
        assert page_table is not None
        logits = torch.zeros(self.max_batch_size, VOCAB)
        for slot in range(self.max_batch_size):
            position = int(positions[slot])
            if position >= 0:
                self._write(page_table[slot], position, [int(tokens[slot])])
                logits[slot, next_token(self._read(page_table[slot], position + 1))] = self.height
        if sampling is None:
            return logits
        self.decodes_on_device += 1
        return logits.argmax(-1).to(torch.int32)

    def held_traces(self) -> list[Any]:
        return []

    def reset(self) -> None:
        self.pages.fill_(-1)
        self.decodes_on_device = self.chunks = 0


class _Loaded:
    """Stands for runtime/loading.py's."""

    def __init__(self, groups: int) -> None:
        self.engines = [
            PagedFake(group_batch(USERS, groups), PAGES // groups) for _ in range(groups)
        ]


class FakeWorker(TTWorker):
    """The worker with fake engines in place of a mesh and a model."""

    def init_device(self) -> None:
        from contextlib import ExitStack

        self.options = options_of(self.vllm_config)
        self.stack = ExitStack()

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        self.loaded = _Loaded(self.options.data_parallel)  # type: ignore[assignment]


def write_model(folder: Path) -> Path:
    """A model directory with nothing but a config."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB}
    names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"}
    config = {**names, **sizes, **heads, "max_position_embeddings": CONTEXT, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_engine(folder: Path, **options: Any) -> LLMEngine:
    """vLLM's engine, in this process."""
    arguments: dict[str, Any] = {"max_num_batched_tokens": 96, **options}
    engine = EngineArgs(
        model=str(write_model(folder)),
        skip_tokenizer_init=True,
        max_model_len=CONTEXT,
        max_num_seqs=USERS,
        worker_cls="tests.served.paged_fake.FakeWorker",
        **arguments,
    )
    return LLMEngine.from_engine_args(engine)


def runner_of(engine: LLMEngine) -> Any:
    """Our runner, deep within."""
    core = engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.runner


def scheduler_of(engine: LLMEngine) -> Any:
    """vLLM's scheduler."""
    return engine.engine_core.engine_core.scheduler
