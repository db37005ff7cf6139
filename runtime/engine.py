"""One model on one mesh: host tensors in, host tensors out.

The engine owns the device inputs, the prefill groups and chunks, and the traces; it knows users
only as slots and pages. runtime/generator.py decides who runs; models/transformer.py is the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends import ttnn
from models.kv_cache import CacheAddress
from models.plans.target import Phase
from models.transformer import Transformer
from runtime.ahead import Reading, StepAhead
from runtime.choices import Choices, Result
from runtime.chunking import Chunk, bucket_length, plan_chunks
from runtime.inputs import InputPlacer
from runtime.prompt_pages import Prompt, PromptPages
from runtime.requests import Steps, in_turns
from runtime.sampling import DeviceSampling
from runtime.short_prefill import LONGEST, ShortPrefills
from runtime.traces import Trace

# Prompts of one bucket are prefilled together up to this many positions: enough rows to fill the
# grid, little enough that activations stay small beside the weights.
BATCHED_PREFILL_TOKENS = 4096


class Engine:
    """Prefill and decode of one model; not thread-safe."""

    def __init__(
        self,
        model: Transformer,
        *,
        max_prefill_chunk: int,
        enable_trace: bool = True,
        batched_prefill: bool = True,
    ) -> None:
        self.model, self.config = model, model.config
        options = model.options
        self.max_batch_size, self.max_seq_len = options.max_batch_size, options.max_seq_len
        self.block_size = options.cache.block_size
        self.num_blocks = options.cache.num_blocks if self.block_size else 0
        self.vocab_size = model.config.vocab_size
        self.max_prefill_chunk = max_prefill_chunk
        self.enable_trace = enable_trace
        self.batched_prefill = batched_prefill and self.block_size is not None
        self.supports_device_sampling = True
        self.place = InputPlacer(model.mesh, model.sharding)
        self.prompt_pages = PromptPages(self.place, self.block_size or 1, self.max_seq_len)
        batch = model.batch
        blocks = -(-self.max_seq_len // self.block_size) if self.block_size else 1
        zeros = torch.zeros(batch, dtype=torch.int32)
        self.tokens = self.place.buffer(zeros.reshape(1, 1, 1, -1), ttnn.uint32)
        self.positions = self.place.buffer(zeros - 1, ttnn.int32, user_dim=0)
        self.rope_positions = self.place.buffer(
            model.rope.plan.looked_up(zeros), ttnn.uint32, user_dim=1
        )
        self.short_context = model.rope.short_context
        self.first_rows = zeros + self.short_context  # of the rotary tables, by slot
        self.pages = self.place.buffer(
            torch.full((batch, blocks), -1, dtype=torch.int32), ttnn.int32, user_dim=0
        )
        self.choices = Choices(self.place, batch)
        self.traces: dict[Result, Trace] = {}
        self.goes_ahead = True
        self.ahead = StepAhead(self)
        self.short_prefills = ShortPrefills(model, self.place, bucket_length(self.max_seq_len))

    def expect(self, slot: int, *, is_long: bool) -> None:
        """Whether the slot's next user goes beyond `short_context`, as who says nothing may."""
        self.first_rows[slot] = self.short_context if is_long else 0

    # --- prefill

    def prefill(self, tokens: Sequence[Sequence[int]], **how: Any) -> torch.Tensor:
        """All of `prefilling` at once."""
        return in_turns([self.prefilling(tokens, **how)])[0]

    def prefilling(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        page_table: torch.Tensor | None = None,
        start_positions: Sequence[int] | None = None,
    ) -> Steps[torch.Tensor]:
        """Fill the cache with prompts; float32 logits [n, vocab] of each prompt's last token.

        Each step sends a pass, the next waits for its logits: a trace writes all to one place.
        page_table: int32 [max_batch, blocks per user], -1 where a slot owns no block.
        start_positions: leading tokens of each prompt that are in the cache already, in whole
        pages: none of these is written, as others may read them.
        """
        self.ahead.forget()
        self.model.ccl.decode.enter(Phase.PREFILL)
        starts = start_positions or [0] * len(tokens)
        prompts = [
            Prompt(i, *rest) for i, rest in enumerate(zip(tokens, slots, starts, strict=True))
        ]
        for prompt in prompts:
            if len(prompt.tokens) > self.max_seq_len:
                raise ValueError(
                    f"a prompt of {len(prompt.tokens)} tokens does not fit max_seq_len "
                    f"{self.max_seq_len}: shorten it or raise max_seq_len"
                )
        logits = torch.empty(len(prompts), self.vocab_size)
        for group in self._groups(prompts):
            sent = (
                self._prefill_together(group, page_table)
                if len(group) > 1
                else self._prefill_alone(group[0], page_table)
            )
            yield
            logits[[prompt.index for prompt in group]] = self.place.read_vocab(sent)
            del sent  # the next pass may be a replay that writes there
        return logits

    def _groups(self, prompts: list[Prompt]) -> list[list[Prompt]]:
        """Prompts of one bucket together while they stay small; chunked ones alone."""
        groups: list[list[Prompt]] = []
        open_group: dict[tuple[int, int], list[Prompt]] = {}
        for prompt in prompts:
            bucket = bucket_length(len(prompt.tokens))
            whole = not prompt.start and bucket <= self.max_prefill_chunk
            together = self.batched_prefill and whole
            kind = bucket, int(self.first_rows[prompt.slot])
            group = open_group.get(kind) if together else None
            if group is None or (len(group) + 1) * bucket > BATCHED_PREFILL_TOKENS:
                group = []
                groups.append(group)
                if together:
                    open_group[kind] = group
            group.append(prompt)
        return groups

    def _prefill_together(self, group: list[Prompt], page_table: torch.Tensor | None) -> Any:
        """Prompts of one bucket in one pass; their logits on the device."""
        assert page_table is not None, "a paged cache needs a page table"
        length = bucket_length(len(group[0].tokens))
        rows = torch.zeros(len(group), length, dtype=torch.int32)
        for row, prompt in zip(rows, group, strict=True):
            row[: len(prompt.tokens)] = torch.tensor(prompt.tokens, dtype=torch.int32)
        last = torch.tensor([i * length + len(p.tokens) - 1 for i, p in enumerate(group)])
        short, release = self.short_prefills, self._release_traces
        if self._is_short(group[0]) and short.has_place(len(group), length, release_traces=release):
            pages = self.prompt_pages.written(page_table, group)
            turns, traced = self._turns(group[0], 0, length), self.enable_trace
            return short.run(rows, turns, last, pages, traced=traced, release_traces=release)
        return self.model.prefill(
            self._ids(rows),
            self._ids(self._turns(group[0], 0, length), rank=2),
            self.prompt_pages.whole(page_table, group),
            users=len(group),
            last_rows=self._ids(last, rank=2),
        )

    def _prefill_alone(self, prompt: Prompt, page_table: torch.Tensor | None) -> Any:
        """One prompt, in chunks where it is too long or begins in the cache; logits as above."""
        if self._is_short(prompt):
            return self._prefill_together([prompt], page_table)
        logits = None
        chunks = plan_chunks(
            len(prompt.tokens), max_chunk=self.max_prefill_chunk, start=prompt.start
        )
        for chunk in chunks:
            ids = torch.zeros(chunk.padded_length, dtype=torch.int32)
            ids[: chunk.length] = torch.tensor(
                prompt.tokens[chunk.start : chunk.end], dtype=torch.int32
            )
            whole = chunk.start == 0 and len(chunks) == 1
            last = chunk.last_index
            turns = self._turns(prompt, chunk.start, chunk.padded_length)
            logits = self.model.prefill(
                self._ids(ids),
                self._ids(turns, rank=2),
                self._address(prompt, page_table, None if whole else chunk),
                last_rows=None if last is None else self._ids(torch.tensor([last]), rank=2),
            )
        return logits

    def _turns(self, prompt: Prompt, start: int, length: int) -> torch.Tensor:
        """Rows of the rotary tables for a stretch of a prompt, padding included."""
        positions = torch.arange(start, start + length).clamp(max=self.max_seq_len - 1)
        return positions + self.first_rows[prompt.slot]

    def _is_short(self, prompt: Prompt) -> bool:
        """Whether a prompt's inputs and results have places of their own, for a trace to replay."""
        longest = min(LONGEST, self.max_prefill_chunk) if self.block_size else 0
        return not prompt.start and bucket_length(len(prompt.tokens)) <= longest

    def _address(
        self, prompt: Prompt, page_table: torch.Tensor | None, chunk: Chunk | None
    ) -> CacheAddress:
        if self.block_size is None:
            start = None if chunk is None else chunk.start
            return CacheAddress(slot=prompt.slot, chunk_start=start)
        assert page_table is not None, "a paged cache needs a page table"
        if chunk is None:
            return self.prompt_pages.whole(page_table, [prompt])
        return self.prompt_pages.chunk(page_table, prompt, chunk)

    def _ids(self, values: torch.Tensor, rank: int = 4) -> Any:
        shape = (1,) * (rank - 1) + (-1,)
        return self.place.device(values.to(torch.int32).reshape(shape), ttnn.uint32)

    # --- decode

    def decode(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        page_table: torch.Tensor | None = None,
        sampling: DeviceSampling | None = None,
        more: bool = False,
    ) -> torch.Tensor:
        """One token of every slot (int32 [B], position -1 = idle): logits float32 [B, vocab].

        With `sampling` the device chooses: int32 [B] tokens, which it also feeds to its next step,
        so a step that continues the last one sends nothing to the device but seeds for draws. Say
        `more` if all go on to the next step: it may then start before this one's tokens are read.
        """
        reading = self.ahead.taken(tokens, positions, page_table, sampling)
        if reading is None:
            self.ahead.forget()
            result, out = self._decode_now(tokens, positions, page_table, sampling)
            if result is Result.LOGITS:
                return self.place.read_vocab(out)[: self.max_batch_size]
            reading = Reading(self.model.mesh, out)
        if more and self.goes_ahead:
            self.ahead.start(self.traces.get(Result.LIKELIEST), positions, page_table)
        drawn = self.ahead.noted(reading)
        return drawn[: self.max_batch_size]

    def _decode_now(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        page_table: torch.Tensor | None,
        sampling: DeviceSampling | None,
    ) -> tuple[Result, Any]:
        """What a step gives, and where the device leaves it."""
        self._write_inputs(tokens, positions, page_table)
        self.model.ccl.decode.enter(Phase.DECODE)
        result = self.choices.write(sampling, self.traces)
        trace = self.traces.setdefault(result, Trace(self.model.mesh))
        if not self.enable_trace or not trace.is_compiled:
            out = trace.compile(lambda: self._step(result))
        else:
            if not trace.captured:
                trace.capture(lambda: self._step(result))
                for buffer in (self.tokens, self.positions, self.rope_positions):
                    buffer.rewrite()  # capturing may have advanced them
            out = trace.execute()
        return result, out

    def _write_inputs(
        self, tokens: torch.Tensor, positions: torch.Tensor, page_table: torch.Tensor | None
    ) -> None:
        batch, slots = self.model.batch, len(tokens)
        if slots > batch or len(positions) != slots:
            raise ValueError(f"{slots} tokens and {len(positions)} positions for {batch} slots")
        all_tokens = torch.zeros(batch, dtype=torch.int32)
        all_positions = torch.full((batch,), -1, dtype=torch.int32)
        all_tokens[:slots], all_positions[:slots] = tokens, positions
        if int(all_positions.max()) >= self.max_seq_len:
            raise ValueError(
                f"position {int(all_positions.max())} is beyond max_seq_len {self.max_seq_len}"
            )
        idle = all_positions < 0
        known = self.tokens.values.reshape(-1)
        # idle slots compute garbage that nobody reads: leave their inputs as they are
        self.tokens.write(torch.where(idle, known, all_tokens).reshape(1, 1, 1, -1))
        self.positions.write(all_positions)
        turned = self.model.rope.plan.users_of(self.rope_positions.values)
        keep = torch.where(turned < self.model.rope.rows, turned, 0)
        turned = torch.where(idle, keep, all_positions + self.first_rows)
        self.rope_positions.write(self.model.rope.plan.looked_up(turned))
        if page_table is not None:
            pages = torch.full_like(self.pages.values, -1)
            pages[: len(page_table), : page_table.shape[1]] = page_table
            self.pages.write(pages)

    def _decode_address(self) -> CacheAddress:
        pages = self.pages.tensor if self.block_size else None
        return CacheAddress(pages=pages, positions=self.positions.tensor)

    def _step(self, result: Result) -> Any:
        at = self._decode_address()
        logits = self.model.decode(self.tokens.tensor, self.rope_positions.tensor, at)
        if result is Result.LOGITS:
            return logits
        inputs = self.choices.inputs(result)
        tokens = self.model.sample(logits, inputs, self.tokens.tensor)
        ttnn.plus_one(self.positions.tensor, skip_negative_entries=True)
        ttnn.plus_one(self.rope_positions.tensor)
        return tokens

    # --- life

    def reset(self) -> None:
        """Forget all users: attention never reads past a position, so no cache is cleared."""
        self.ahead.forget()
        self.first_rows.fill_(self.short_context)
        self.positions.write(torch.full_like(self.positions.values, -1))
        self.pages.write(torch.full_like(self.pages.values, -1))

    def close(self) -> None:
        """Release traces; the mesh stays open."""
        self.ahead.forget()
        self._release_traces()
        self.traces.clear()

    def held_traces(self) -> list[Trace]:
        return [*self.traces.values(), *self.short_prefills.traces()]

    def _release_traces(self) -> None:
        """Free what is recorded; it is captured again where it is needed."""
        for trace in self.held_traces():
            trace.release()
