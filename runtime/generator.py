"""Turns requests into tokens: who gets which slot and which pages, one prefill or decode at a time.

Continuous batching: a slot that is freed takes the next waiting request. Knows no benchmark and no
text; runtime/engine.py runs the model, demo/ times and prints what is yielded here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch

from runtime.paging import NO_BLOCK, BlockPool
from runtime.sampling import (
    GREEDY,
    DeviceSampling,
    Sampler,
    SamplingParams,
    device_sampling,
)


class Engine(Protocol):
    """What the generator needs of runtime/engine.py."""

    max_batch_size: int
    max_seq_len: int
    block_size: int | None
    num_blocks: int
    vocab_size: int
    supports_device_sampling: bool

    def prefill(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        page_table: torch.Tensor | None = None,
        start_positions: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Logits float32 [n, vocab] of each prompt's last token."""
        ...

    def decode(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        page_table: torch.Tensor | None = None,
        sampling: DeviceSampling | None = None,
    ) -> torch.Tensor:
        """Logits float32 [B, vocab], or int32 [B] tokens with `sampling`."""
        ...

    def reset(self) -> None:
        """Forget all users."""
        ...


class Finish(Enum):
    """Why a user's answer ended."""

    EOS = "eos"
    LENGTH = "length"


@dataclass(frozen=True)
class Request:
    """One prompt in tokens and how to answer it.

    `max_positions` is for stress tests: having reached it, positions go on from the prompt's end.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams = GREEDY
    max_positions: int | None = None

    @property
    def cache_length(self) -> int:
        """Positions the cache must hold: the last generated token is never written."""
        length = len(self.prompt) + self.max_new_tokens - 1
        return length if self.max_positions is None else min(length, self.max_positions)

    def next_position(self, position: int) -> int:
        """Where the token after the one at `position` is written."""
        if self.max_positions is not None and position + 1 >= self.max_positions:
            return len(self.prompt)
        return position + 1


class StepKind(Enum):
    """What a step ran."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Step:
    """One prefill of new users or one decode of all: new tokens and ends, by request number."""

    kind: StepKind
    seconds: float
    tokens: dict[int, int]
    finished: dict[int, Finish] = field(default_factory=dict)
    log_probs: dict[int, float] = field(default_factory=dict)  # of the tokens, where asked for


@dataclass
class _User:
    """A request in a slot. `position` is where its newest token will be written."""

    number: int
    request: Request
    token: int = 0
    position: int = 0
    num_new: int = 0
    history: list[int] = field(default_factory=list)  # kept only where answers are shared


_Chosen = tuple[int, int, float | None]  # slot, token, log-probability


class Generator:
    """Runs requests on one or more engines (data parallel); slots count through all of them."""

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        eos_ids: Iterable[int] = (),
        page_seed: int | None = 0,
        share_prefixes: bool = False,
        share_answers: bool = True,
        sample_on_device: bool = False,
        log_probs: bool = False,
    ) -> None:
        """`page_seed` hands pages out in random order, so that a wrong page table shows.

        `share_answers` shares generated tokens' blocks too, once their user is done; not for 2D
        meshes, where decode fills only the cache of the column that owns the user.
        `log_probs` reports how likely each chosen token was; it needs logits, so the host samples.
        """
        self.engines = list(engines)
        first = self.engines[0]
        self.slots_per_engine = first.max_batch_size
        self.num_slots = self.slots_per_engine * len(self.engines)
        self.eos_ids = frozenset(eos_ids)
        self.share_prefixes = share_prefixes and first.block_size is not None
        self.share_answers = self.share_prefixes and share_answers
        self.log_probs = log_probs
        self.sample_on_device = (
            sample_on_device and first.supports_device_sampling and not log_probs
        )
        self.page_seed = page_seed
        self.sampler = Sampler(self.num_slots, first.vocab_size)
        self.reset()

    def reset(self) -> None:
        """Forget all users and what the caches hold."""
        self.users: list[_User | None] = [None] * self.num_slots
        self.waiting: deque[tuple[int, Request]] = deque()
        self.pools = [self._new_pool(engine) for engine in self.engines]
        self._tables = [self._new_table(engine) for engine in self.engines]
        for slot in range(self.num_slots):
            self.sampler.release(slot)
        for engine in self.engines:
            engine.reset()

    def generate(self, requests: Iterable[Request]) -> Iterator[Step]:
        """Answer every request, numbered in order; yields each prefill and each decode step."""
        requests = list(requests)
        for number, request in enumerate(requests):
            self.check(request, number)
        self.waiting.extend(enumerate(requests))
        while self.waiting or any(self.users):
            admitted = self.admit()
            if admitted:
                yield self.prefill(admitted)
            elif any(self.users):
                yield self.decode()
            else:
                raise ValueError(self._full_line(self.waiting[0][1]))

    def check(self, request: Request, number: int = 0) -> None:
        """Raise one clear line for a request that could never be answered."""
        length, engine = len(request.prompt), self.engines[0]
        if not length or request.max_new_tokens < 1:
            raise ValueError(
                f"request {number}: {length} prompt tokens and {request.max_new_tokens} to "
                "generate; give at least one of each"
            )
        if request.cache_length > engine.max_seq_len:
            raise ValueError(
                f"request {number}: a prompt of {length} tokens and {request.max_new_tokens} "
                f"generated ones do not fit max_seq_len {engine.max_seq_len}: "
                "raise max_seq_len, shorten the prompt or generate less"
            )
        pool = self.pools[0]
        if pool is not None and pool.blocks_for(request.cache_length) > engine.num_blocks:
            raise ValueError(self._full_line(request))

    def admit(self) -> list[int]:
        """Give waiting requests slots and pages, in order, while there are any; their slots."""
        slots: list[int] = []
        unwritten: set[tuple[int, ...]] = set()  # first blocks this very prefill will write
        while self.waiting:
            number, request = self.waiting[0]
            slot = self._free_slot(request)
            if slot is None:
                break
            if self.share_prefixes:
                # a prompt that begins like one of this wave waits, to read what that one writes
                start = tuple(request.prompt[: self.engines[0].block_size])
                if start in unwritten:
                    break
                unwritten.add(start)
            self.waiting.popleft()
            user = _User(number, request)
            pool = self.pools[slot // self.slots_per_engine]
            if pool is not None:
                limit = request.cache_length
                user.position = pool.allocate(slot, request.prompt, limit=limit)
            self._write_table(slot)
            self.users[slot] = user
            self.sampler.assign(slot, request.sampling, request.prompt)
            slots.append(slot)
        return slots

    def prefill(self, slots: Sequence[int]) -> Step:
        """Prefill the users of these slots and choose their first tokens."""
        begin = time.perf_counter()
        chosen: list[_Chosen] = []
        for index, engine in enumerate(self.engines):
            own = [s for s in slots if s // self.slots_per_engine == index]
            if not own:
                continue
            users = [self._user(slot) for slot in own]
            logits = engine.prefill(
                [user.request.prompt for user in users],
                slots=[slot % self.slots_per_engine for slot in own],
                page_table=self._tables[index],
                start_positions=[user.position for user in users],
            )
            chosen += self._choose(logits, own)
            for slot, user in zip(own, users, strict=True):
                user.position = len(user.request.prompt)
                self._publish(slot, user.request.prompt)
        return self._finish_step(StepKind.PREFILL, chosen, begin)

    def decode(self) -> Step:
        """One token more for every user; slots without a user are idle at position -1."""
        begin = time.perf_counter()
        chosen: list[_Chosen] = []
        for index, engine in enumerate(self.engines):
            first = index * self.slots_per_engine
            slots = [s for s in range(first, first + self.slots_per_engine) if self.users[s]]
            if slots:
                chosen += self._decode_engine(engine, index, slots)
        return self._finish_step(StepKind.DECODE, chosen, begin)

    def _choose(self, logits: torch.Tensor, slots: list[int]) -> list[_Chosen]:
        """Sample on the host, one row per slot."""
        tokens = self.sampler.sample(logits, slots)
        log_probs: list[float | None] = [None] * len(slots)
        if self.log_probs:
            rows = logits.log_softmax(dim=-1).gather(1, tokens.long().unsqueeze(1))
            log_probs = rows.squeeze(1).tolist()
        return list(zip(slots, tokens.tolist(), log_probs, strict=True))

    def _decode_engine(self, engine: Engine, index: int, slots: list[int]) -> list[_Chosen]:
        first = index * self.slots_per_engine
        inputs = torch.zeros(self.slots_per_engine, dtype=torch.int32)
        positions = torch.full((self.slots_per_engine,), -1, dtype=torch.int32)
        for slot in slots:
            user = self._user(slot)
            inputs[slot - first], positions[slot - first] = user.token, user.position
            pool = self.pools[index]
            if pool is not None and pool.grow(slot, user.position + 1):
                self._write_table(slot)
        on_device = self._device_sampling(first)
        out = engine.decode(inputs, positions, page_table=self._tables[index], sampling=on_device)
        for slot in slots:
            user = self._user(slot)
            if self.share_answers and user.request.max_positions is None:
                user.history.append(user.token)  # positions that wrap are written over
            user.position = user.request.next_position(user.position)
        rows = out[[slot - first for slot in slots]]
        if on_device is None:
            return self._choose(rows, slots)
        return [(slot, token, None) for slot, token in zip(slots, rows.tolist(), strict=True)]

    def _finish_step(self, kind: StepKind, chosen: list[_Chosen], begin: float) -> Step:
        """Note the new tokens, free the slots of finished users, and report."""
        step = Step(kind, time.perf_counter() - begin, {})
        for slot, token, log_prob in chosen:
            user = self._user(slot)
            user.token = step.tokens[user.number] = token
            user.num_new += 1
            if log_prob is not None:
                step.log_probs[user.number] = log_prob
            if token in self.eos_ids:
                step.finished[user.number] = Finish.EOS
            elif user.num_new == user.request.max_new_tokens:
                step.finished[user.number] = Finish.LENGTH
            if user.number in step.finished:
                self._release(slot)
        return step

    def _release(self, slot: int) -> None:
        user = self._user(slot)
        pool = self.pools[slot // self.slots_per_engine]
        if pool is not None:
            self._publish(slot, [*user.request.prompt, *user.history])
            pool.free(slot)
        self._write_table(slot)
        self.users[slot] = None
        self.sampler.release(slot)

    def _publish(self, slot: int, tokens: Sequence[int]) -> None:
        pool = self.pools[slot // self.slots_per_engine]
        if pool is not None and self.share_prefixes:
            pool.publish(slot, tokens)

    def _free_slot(self, request: Request) -> int | None:
        """A free slot whose engine has the pages, on the engine with the fewest users."""
        busy = [0] * len(self.engines)
        free: list[int] = []
        for slot, user in enumerate(self.users):
            if user is None:
                free.append(slot)
            else:
                busy[slot // self.slots_per_engine] += 1
        for slot in sorted(free, key=lambda s: (busy[s // self.slots_per_engine], s)):
            pool = self.pools[slot // self.slots_per_engine]
            limit = request.cache_length
            if pool is None or pool.can_allocate(request.prompt, limit=limit):
                return slot
        return None

    def _device_sampling(self, first: int) -> DeviceSampling | None:
        if not self.sample_on_device:
            return None
        return device_sampling(self.sampler.params[first : first + self.slots_per_engine])

    def _new_pool(self, engine: Engine) -> BlockPool | None:
        if engine.block_size is None:
            return None
        return BlockPool(
            engine.num_blocks,
            engine.block_size,
            seed=self.page_seed,
            share_prefixes=self.share_prefixes,
        )

    def _new_table(self, engine: Engine) -> torch.Tensor | None:
        """int32 [slots, blocks per user], no blocks yet."""
        if engine.block_size is None:
            return None
        width = -(-engine.max_seq_len // engine.block_size)
        return torch.full((self.slots_per_engine, width), NO_BLOCK, dtype=torch.int32)

    def _write_table(self, slot: int) -> None:
        """Bring a slot's row of the page table up to date."""
        index, row = divmod(slot, self.slots_per_engine)
        pool, table = self.pools[index], self._tables[index]
        if pool is not None and table is not None:
            width = table.shape[1]
            blocks = pool.table(slot, width) if pool.holds(slot) else [NO_BLOCK] * width
            table[row] = torch.tensor(blocks, dtype=torch.int32)

    def _user(self, slot: int) -> _User:
        user = self.users[slot]
        assert user is not None, f"slot {slot} has no user"
        return user

    def _full_line(self, request: Request) -> str:
        engine = self.engines[0]
        return (
            f"KV cache is too small: {len(request.prompt)} prompt tokens and "
            f"{request.max_new_tokens} generated ones need more than the {engine.num_blocks} "
            f"blocks of {engine.block_size} tokens there are: raise page_max_num_blocks, "
            "shorten the prompt or generate less"
        )
