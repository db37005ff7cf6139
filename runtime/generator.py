"""Turns requests into tokens: who gets which slot and which pages, one prefill or decode at a time.

Continuous batching: a slot that is freed takes the next waiting request. Programs add, step and
cancel; `generate` does that for a list. Knows no benchmark and no text: engine.py runs the model,
requests.py says what goes in and out. Not thread-safe.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from runtime.paging import NO_BLOCK, BlockPool
from runtime.requests import Engine, Finish, Request, Step, StepKind, Steps, in_turns
from runtime.sampling import DeviceSampling, HostSampler


@dataclass
class _User:
    """A request in a slot: its next decode step is given `token`, to be written at `position`."""

    handle: int
    request: Request
    token: int = 0
    position: int = 0
    num_new: int = 0
    unfed: deque[int] = field(default_factory=deque)  # prompt tokens that decode has still to take
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
        prompts_by_decode: bool = False,
        on_logits: Callable[[list[int], torch.Tensor], None] | None = None,
    ) -> None:
        """`page_seed` hands pages out in random order, so that a wrong page table shows.

        `share_answers` shares generated tokens' blocks too, once their user is done; not for 2D
        meshes, where decode may fill only the cache of the column that owns the user.
        `log_probs` reports how likely each chosen token was; `on_logits` is shown the requests'
        handles and their logits [n, vocab]: both need logits, so the host samples.
        `prompts_by_decode` feeds prompts token by token through decode, without a prefill.
        """
        self.engines = list(engines)
        first = self.engines[0]
        self.slots_per_engine = first.max_batch_size
        self.num_slots = self.slots_per_engine * len(self.engines)
        self.eos_ids = frozenset(eos_ids)
        self.prompts_by_decode = prompts_by_decode
        self.share_prefixes = (
            share_prefixes and first.block_size is not None and not prompts_by_decode
        )
        self.share_answers = self.share_prefixes and share_answers
        self.log_probs, self.on_logits = log_probs, on_logits
        reads_logits = log_probs or on_logits is not None
        self.sample_on_device = (
            sample_on_device and first.supports_device_sampling and not reads_logits
        )
        self.page_seed = page_seed
        self.sampler = HostSampler(self.num_slots, first.vocab_size)
        self._handles = itertools.count()
        self.reset()

    def reset(self) -> None:
        """Forget all requests and what the caches hold; handles are not given out again."""
        self.users: list[_User | None] = [None] * self.num_slots
        self.waiting: deque[tuple[int, Request]] = deque()
        self._mailbox: deque[Step] = deque()  # of requests that were added
        self._inboxes: dict[int, deque[Step]] = {}  # where an unfinished request's steps go
        self.pools = [self._new_pool(engine) for engine in self.engines]
        self._tables = [self._new_table(engine) for engine in self.engines]
        for slot in range(self.num_slots):
            self.sampler.release(slot)
        for engine in self.engines:
            engine.reset()

    def add(self, request: Request) -> int:
        """Queue a request; returns the handle under which `step` reports it, unique for ever."""
        self.check(request)
        return self._queue(request, self._mailbox)

    def step(self) -> Step | None:
        """What the next prefill or decode gave the requests that were added; None after the last.

        Requests of `generate` move on as well, but are only seen there.
        """
        while not self._mailbox:
            if not any(inbox is self._mailbox for inbox in self._inboxes.values()):
                return None
            self._advance()
        return self._mailbox.popleft()

    def cancel(self, handle: int) -> None:
        """End a request now, waiting or running; its slot and pages are free at once."""
        self._inboxes.pop(handle, None)
        self.waiting = deque(entry for entry in self.waiting if entry[0] != handle)
        for slot, user in enumerate(self.users):
            if user is not None and user.handle == handle:
                self._release(slot)

    def is_finished(self, handle: int) -> bool:
        """Whether a request has its whole answer, or was cancelled."""
        return handle not in self._inboxes

    def generate(self, requests: Iterable[Request]) -> Iterator[Step]:
        """Answer these requests, numbered in order; yields each step that some of them took.

        Others may add requests or generate at the same time: everyone sees only their own. Who
        stops early cancels what is left.
        """
        requests = list(requests)
        for number, request in enumerate(requests):
            self.check(request, number)
        inbox: deque[Step] = deque()
        numbers = {self._queue(request, inbox): n for n, request in enumerate(requests)}
        try:
            while inbox or not all(map(self.is_finished, numbers)):
                if inbox:
                    yield inbox.popleft().renumbered(numbers)
                else:
                    self._advance()
        finally:
            for handle in numbers:
                self.cancel(handle)

    def _queue(self, request: Request, inbox: deque[Step]) -> int:
        handle = next(self._handles)
        self._inboxes[handle] = inbox
        self.waiting.append((handle, self.marked(request)))
        return handle

    def marked(self, request: Request) -> Request:
        """The request, told that it is long where short contexts turn by other angles."""
        is_long = 0 < self.engines[0].short_context < request.cache_length
        return replace(request, is_long=True) if is_long else request

    def _advance(self) -> None:
        """Prefill those who now find room, else decode all; everyone's inbox gets their part."""
        admitted = self.admit()
        if admitted and not self.prompts_by_decode:
            step = self.prefill(admitted)
        else:
            assert any(self.users), "a request that passed its check finds room when all is free"
            step = self.decode()
        shares: dict[int, tuple[deque[Step], dict[int, int]]] = {}
        for handle in step.users:
            inbox = self._inboxes[handle]
            shares.setdefault(id(inbox), (inbox, {}))[1][handle] = handle
        for inbox, own in shares.values():
            inbox.append(step.renumbered(own))
        for handle in step.finished:
            del self._inboxes[handle]

    def check(self, request: Request, number: int = 0) -> None:
        """Raise one clear line for a request that could never be answered."""
        length, engine = len(request.prompt), self.engines[0]
        assert self.prompts_by_decode or not request.start, "a prefill begins at position 0"
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
            raise ValueError(
                f"KV cache is too small: {length} prompt tokens and {request.max_new_tokens} "
                f"generated ones need more than the {engine.num_blocks} blocks of "
                f"{engine.block_size} tokens there are: raise page_max_num_blocks, shorten the "
                "prompt or generate less"
            )

    def admit(self) -> list[int]:
        """Give waiting requests slots and pages, in order, while there are any; their slots."""
        slots: list[int] = []
        unwritten: set[tuple[int, ...]] = set()  # first blocks this very prefill will write
        while self.waiting:
            handle, request = self.waiting[0]
            slot = self._free_slot(request)
            if slot is None:
                break
            if self.share_prefixes:
                # a prompt that begins like one of this wave waits, to read what that one writes
                start = tuple(request.contents[: self.engines[0].block_size])
                if start in unwritten:
                    break
                unwritten.add(start)
            self.waiting.popleft()
            user = _User(handle, request)
            pool = self.pools[self._engine_of(slot)]
            if pool is not None:
                limit = request.cache_length
                user.position = pool.allocate(slot, request.contents, limit=limit)
            if self.prompts_by_decode:
                user.position, user.unfed = request.start, deque(request.prompt)
                user.token = user.unfed.popleft()
            self._seat(slot, user)
            slots.append(slot)
        return slots

    def _seat(self, slot: int, user: _User) -> None:
        index, own = divmod(slot, self.slots_per_engine)
        self.engines[index].expect(own, is_long=user.request.is_long)
        self._write_table(slot)
        self.users[slot] = user
        self.sampler.assign(slot, user.request.sampling, user.request.prompt)

    def prefill(self, slots: Sequence[int]) -> Step:
        """Prefill the users of these slots and choose their first tokens."""
        begin = time.perf_counter()
        handles = tuple(self._user(slot).handle for slot in slots)
        by_engine = [list(g) for _, g in itertools.groupby(sorted(slots), key=self._engine_of)]
        found = in_turns([self._prefilling(own) for own in by_engine])
        chosen: list[_Chosen] = []
        for own, logits in zip(by_engine, found, strict=True):
            chosen += self._choose(logits, own)
        for slot in slots:
            user = self._user(slot)
            user.position = len(user.request.prompt)
            self._publish(slot, user.request.contents)
        return self._finish_step(StepKind.PREFILL, handles, chosen, begin)

    def _engine_of(self, slot: int) -> int:
        return slot // self.slots_per_engine

    def _prefilling(self, slots: list[int]) -> Steps[torch.Tensor]:
        """The prefill of one engine's users."""
        users, index = list(map(self._user, slots)), self._engine_of(slots[0])
        return self.engines[index].prefilling(
            [user.request.prompt for user in users],
            slots=[slot % self.slots_per_engine for slot in slots],
            page_table=self._tables[index],
            start_positions=[user.position for user in users],
        )

    def decode(self) -> Step:
        """One token more for every user; slots without a user are idle at position -1."""
        begin = time.perf_counter()
        handles = tuple(user.handle for user in self.users if user is not None)
        chosen: list[_Chosen] = []
        active = [slot for slot, user in enumerate(self.users) if user]
        for index, own in itertools.groupby(active, key=self._engine_of):
            chosen += self._decode_engine(self.engines[index], index, list(own))
        return self._finish_step(StepKind.DECODE, handles, chosen, begin)

    def _choose(self, logits: torch.Tensor, slots: list[int]) -> list[_Chosen]:
        """Sample on the host, one row per slot."""
        if self.on_logits is not None:
            self.on_logits([self._user(slot).handle for slot in slots], logits)
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
        users = map(self._user, slots)
        more = not self.waiting and all(u.request.goes_on(u.num_new) and not u.unfed for u in users)
        table = self._tables[index]
        out = engine.decode(inputs, positions, page_table=table, sampling=on_device, more=more)
        for slot in slots:
            user = self._user(slot)
            if self.share_answers and user.request.max_positions is None:
                user.history.append(user.token)  # positions that wrap are written over
            user.position = user.request.next_position(user.position)
        speaking = [slot for slot in slots if not self._user(slot).unfed]
        for slot in set(slots).difference(speaking):
            user = self._user(slot)
            user.token = user.unfed.popleft()
        rows = out[[slot - first for slot in speaking]]
        if on_device is None:
            return self._choose(rows, speaking) if speaking else []
        self.sampler.note_device_draws(speaking)
        return [(slot, token, None) for slot, token in zip(speaking, rows.tolist(), strict=True)]

    def _finish_step(
        self, kind: StepKind, handles: tuple[int, ...], chosen: list[_Chosen], begin: float
    ) -> Step:
        """The step's report, once new tokens are noted and the slots of finished users freed."""
        step = Step(kind, time.perf_counter() - begin, handles)
        for slot, token, log_prob in chosen:
            user, request = self._user(slot), self._user(slot).request
            step.tokens[user.handle] = token
            forced = user.num_new < len(request.forced)
            user.token = request.forced[user.num_new] if forced else token
            user.num_new += 1
            if log_prob is not None:
                step.log_probs[user.handle] = log_prob
            if token in self.eos_ids:
                step.finished[user.handle] = Finish.EOS
            elif user.num_new == request.max_new_tokens:
                step.finished[user.handle] = Finish.LENGTH
            if user.handle in step.finished:
                self._release(slot)
        return step

    def _release(self, slot: int) -> None:
        user = self._user(slot)
        pool = self.pools[self._engine_of(slot)]
        if pool is not None:
            if user.num_new:  # else its prompt was never written
                self._publish(slot, [*user.request.contents, *user.history])
            pool.free(slot)
        self._write_table(slot)
        self.users[slot] = None
        self.sampler.release(slot)

    def _publish(self, slot: int, tokens: Sequence[int]) -> None:
        pool = self.pools[self._engine_of(slot)]
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
                busy[self._engine_of(slot)] += 1
        for slot in sorted(free, key=lambda s: (busy[s // self.slots_per_engine], s)):
            pool = self.pools[self._engine_of(slot)]
            limit = request.cache_length
            if pool is None or pool.can_allocate(request.contents, limit=limit):
                return slot
        return None

    def _device_sampling(self, first: int) -> DeviceSampling | None:
        if not self.sample_on_device:
            return None
        return self.sampler.device_sampling(first, self.slots_per_engine)

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
