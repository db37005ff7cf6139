"""Every user gets the text it gets alone, whoever comes and goes and wherever its pages lie."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.generator import Generator
from runtime.requests import Finish, Request, Step, StepKind, Steps, in_turns
from runtime.sampling import DeviceSampling, SamplingParams
from tests.model.helpers import answers

VOCAB = 101


class FakeEngine:
    """A model whose next token depends on every token before it, read through the page table.

    Its cache holds tokens instead of keys and values, so any wrong page, position or stale block
    changes the text.
    """

    vocab_size = VOCAB
    supports_device_sampling = True
    short_context = 0

    def __init__(
        self,
        batch: int = 4,
        max_seq_len: int = 64,
        block_size: int | None = 4,
        num_blocks: int = 64,
    ) -> None:
        self.first = 0  # position of the first token that counts
        self.max_batch_size, self.max_seq_len = batch, max_seq_len
        self.block_size, self.num_blocks = block_size, num_blocks
        self.prefilled_tokens = 0
        self.log: list[str] = []  # of prefills
        self.reset()

    def expect(self, slot: int, *, is_long: bool) -> None:
        pass

    def held_traces(self) -> list[Any]:
        return []

    def reset(self) -> None:
        self.cache: dict[tuple[int, int], int] = {}

    def _cell(self, table: torch.Tensor | None, slot: int, position: int) -> tuple[int, int]:
        if self.block_size is None or table is None:
            return slot, position
        block = int(table[slot, position // self.block_size])
        assert 0 <= block < self.num_blocks, "wrote or read where the user has no page"
        return block, position % self.block_size

    def _logits(self, table: torch.Tensor | None, slot: int, length: int) -> torch.Tensor:
        tokens = [self.cache[self._cell(table, slot, p)] for p in range(self.first, length)]
        return torch.randn(VOCAB, generator=torch.Generator().manual_seed(hash(tuple(tokens))))

    def prefilling(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        page_table: torch.Tensor | None = None,
        start_positions: Sequence[int] | None = None,
    ) -> Steps[torch.Tensor]:
        rows = []
        self.log.append("sent")
        yield
        self.log.append("read")
        for i, (prompt, slot) in enumerate(zip(tokens, slots, strict=True)):
            start = start_positions[i] if start_positions else 0
            self.prefilled_tokens += len(prompt) - start
            for position in range(start, len(prompt)):
                self.cache[self._cell(page_table, slot, position)] = prompt[position]
            rows.append(self._logits(page_table, slot, len(prompt)))
        return torch.stack(rows)

    def decode(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        page_table: torch.Tensor | None = None,
        sampling: DeviceSampling | None = None,
        more: bool = False,
    ) -> torch.Tensor:
        assert len(tokens) == len(positions) == self.max_batch_size
        logits = torch.full((self.max_batch_size, VOCAB), float("nan"))
        for slot, position in enumerate(positions.tolist()):
            if position >= 0:
                self.cache[self._cell(page_table, slot, position)] = int(tokens[slot])
                logits[slot] = self._logits(page_table, slot, position + 1)
        return logits if sampling is None else logits.argmax(-1).to(torch.int32)


def alone(request: Request, eos_ids: Sequence[int] = ()) -> list[int]:
    return answers(Generator([FakeEngine(block_size=None)], eos_ids=eos_ids), [request])[0]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    num_engines=st.sampled_from([1, 2]),
    share=st.booleans(),
    on_device=st.booleans(),
)
def test_every_user_gets_the_text_it_gets_alone(
    seed: int, num_engines: int, share: bool, on_device: bool
) -> None:
    rng = random.Random(seed)
    requests = [
        Request([rng.choice((1, 1, 1, 2)) for _ in range(rng.randint(1, 30))], rng.randint(1, 20))
        for _ in range(20)
    ]
    engines = [FakeEngine(num_blocks=24) for _ in range(num_engines)]
    generator = Generator(
        engines, eos_ids=[0, 1, 2], share_prefixes=share, page_seed=seed, sample_on_device=on_device
    )
    assert answers(generator, requests) == [alone(request, [0, 1, 2]) for request in requests]
    assert all(pool is not None and pool.num_free == 24 for pool in generator.pools)


def test_a_freed_slot_takes_the_next_prompt_while_others_go_on() -> None:
    requests = [Request([1], 2), Request([2], 9), Request([3], 2)]
    steps = list(Generator([FakeEngine(batch=2)]).generate(requests))
    kinds = [step.kind for step in steps]
    assert kinds[:3] == [StepKind.PREFILL, StepKind.DECODE, StepKind.PREFILL]
    assert steps[1].finished == {0: Finish.LENGTH}
    assert set(steps[3].tokens) == {1, 2}


def test_generation_stops_at_eos() -> None:
    request = Request([5, 6], 20)
    full = alone(request)
    stop = full[7]
    answer = alone(request, eos_ids=[stop])
    assert answer == full[: full.index(stop) + 1]


def test_a_shared_prefix_is_prefilled_once() -> None:
    prompt = list(range(1, 34))
    engine = FakeEngine()
    requests = [Request(prompt, 3)] * 4
    found = answers(Generator([engine], share_prefixes=True), requests)
    assert found == [alone(requests[0])] * 4
    assert engine.prefilled_tokens == 33 + 3 * 1


@pytest.mark.parametrize(("share_answers", "new_tokens"), [(True, 2), (False, 14)])
def test_a_finished_conversation_is_found_again_where_answers_are_shared(
    share_answers: bool, new_tokens: int
) -> None:
    engine = FakeEngine()
    generator = Generator([engine], share_prefixes=True, share_answers=share_answers)
    first = [1, 2, 3]
    (answer,) = answers(generator, [Request(first, 10)])
    engine.prefilled_tokens = 0
    answers(generator, [Request([*first, *answer, 4], 1)])
    assert engine.prefilled_tokens == new_tokens, "three full blocks of 14 tokens may be shared"


def test_users_sample_by_their_own_seed_in_any_slot() -> None:
    hot = [SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=s) for s in range(6)]
    requests = [Request([9], 8, params) for params in hot]
    found = answers(Generator([FakeEngine(batch=2)]), requests)
    assert found == [alone(request) for request in requests]
    assert len({tuple(answer) for answer in found}) == 6


def test_log_probs_are_those_of_the_chosen_tokens() -> None:
    engine = FakeEngine(block_size=None)
    steps = list(
        Generator([engine], log_probs=True, sample_on_device=True).generate([Request([7], 2)])
    )
    expected = torch.randn(VOCAB, generator=torch.Generator().manual_seed(hash((7,)))).log_softmax(
        0
    )
    assert steps[0].log_probs[0] == pytest.approx(float(expected.max()))
    assert set(steps[1].log_probs) == {0}


@pytest.mark.parametrize("window", [1, 5])
def test_a_stress_run_wraps_its_positions_and_keeps_to_its_pages(window: int) -> None:
    engine = FakeEngine(max_seq_len=16, num_blocks=4, batch=1)
    request = Request([1, 2, 3], 500, max_positions=3 + window)
    (answer,) = answers(Generator([engine]), [request])
    assert len(answer) == 500
    assert len(engine.cache) == 3 + window


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request([1] * 60, 6), "do not fit max_seq_len 64"),
        (Request([1] * 30, 20), "KV cache is too small.*11 blocks of 4.*page_max_num_blocks"),
        (Request([], 5), "0 prompt tokens"),
    ],
)
def test_a_request_that_can_never_fit_is_refused_before_anything_runs(
    request_: Request, words: str
) -> None:
    engine = FakeEngine(num_blocks=11)
    with pytest.raises(ValueError, match=words):
        list(Generator([engine]).generate([Request([1], 1), request_]))
    assert not engine.prefilled_tokens


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), share=st.booleans())
def test_callers_who_add_cancel_and_generate_at_random_get_their_own_answers_and_lose_no_page(
    seed: int, share: bool
) -> None:
    rng = random.Random(seed)
    engines = [FakeEngine(num_blocks=24), FakeEngine(num_blocks=24)]
    generator = Generator(engines, share_prefixes=share, page_seed=seed)

    def request() -> Request:
        prompt = [rng.choice((1, 2)) for _ in range(rng.randint(1, 20))]
        return Request(prompt, rng.randint(1, 12))

    listed = [request() for _ in range(6)]
    listing = [generator.generate(listed[:3]), generator.generate(listed[3:])]
    requests: dict[int, Request] = {}
    heard: dict[tuple[int | None, int], list[int]] = defaultdict(list)  # (caller, request)
    cancelled: set[int] = set()

    def hear(step: Step | None, caller: int | None = None) -> None:
        if step is not None:
            assert set(step.users) <= (set(requests) if caller is None else {0, 1, 2})
            for number, token in step.tokens.items():
                heard[caller, number].append(token)

    for _ in range(200):
        choice = rng.random()
        if choice < 0.2 and len(requests) < 30:
            new = request()
            handle = generator.add(new)
            assert handle not in requests
            requests[handle] = new
        elif choice < 0.25 and requests:
            cancelled.add(handle := rng.choice(list(requests)))
            generator.cancel(handle)
            assert generator.is_finished(handle)
        elif choice < 0.6:
            caller = rng.randrange(2)
            hear(next(listing[caller], None), caller)
        else:
            hear(generator.step())
    while (step := generator.step()) is not None:
        hear(step)
    for caller, steps in enumerate(listing):
        for step in steps:
            hear(step, caller)
    assert [heard[n // 3, n % 3] for n in range(6)] == [alone(request) for request in listed]
    for handle, asked in requests.items():
        whole, found = alone(asked), heard[None, handle]
        assert found == (whole[: len(found)] if handle in cancelled else whole)
    assert all(pool is not None and pool.num_free == 24 for pool in generator.pools)


def test_a_caller_who_leaves_early_cancels_what_is_left() -> None:
    generator = Generator([FakeEngine(batch=1)])
    handle = generator.add(Request([1], 2))
    steps = generator.generate([Request([2], 9)])
    next(steps)
    steps.close()
    while generator.step() is not None:
        pass
    assert generator.is_finished(handle)
    assert not any(generator.users)


def test_every_engine_has_its_prompts_before_any_answer_is_read() -> None:
    log: list[str] = []
    engines = [FakeEngine(batch=1) for _ in range(3)]
    for engine in engines:
        engine.log = log
    requests = [Request([n, 5, 7], 2) for n in range(3)]
    found = answers(Generator(engines), requests)
    assert log == ["sent"] * 3 + ["read"] * 3
    assert found == [alone(request) for request in requests]


def test_work_in_turns_ends_when_each_has_ended() -> None:
    log: list[tuple[str, int]] = []

    def work(name: str, count: int) -> Steps[str]:
        for step in range(count):
            log.append((name, step))
            yield
        return name

    assert in_turns([work("a", 1), work("b", 3), work("c", 0)]) == ["a", "b", "c"]
    assert log == [("a", 0), ("b", 0), ("b", 1), ("b", 2)]


def test_a_request_cancelled_before_its_prompt_was_written_shares_nothing() -> None:
    class Failing(FakeEngine):
        fails = True

        def prefilling(self, *args: Any, **kwargs: Any) -> Steps[torch.Tensor]:
            if self.fails:
                raise RuntimeError("the device hung up")
            return super().prefilling(*args, **kwargs)

    engine, request = Failing(), Request(list(range(1, 20)), 3)
    generator = Generator([engine], share_prefixes=True)
    with pytest.raises(RuntimeError, match="hung up"):
        next(generator.generate([request]))
    engine.fails = False
    assert answers(generator, [request]) == [alone(request)]


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), start=st.integers(0, 9))
def test_prompts_that_are_decoded_get_the_answers_of_those_that_are_prefilled(
    lengths: list[int], start: int
) -> None:
    rng = random.Random(start)
    requests = [Request([rng.randrange(VOCAB) for _ in range(n)], 5, start=start) for n in lengths]
    engine = FakeEngine(batch=4)
    generator = Generator([engine], prompts_by_decode=True)
    engine.first = start  # a model that looks at what was written only
    found = answers(generator, requests)
    assert found == [alone(replace(request, start=0)) for request in requests]
    assert not engine.prefilled_tokens


def test_forced_tokens_are_fed_and_the_chosen_ones_reported() -> None:
    text = [3, 1, 4, 1, 5, 9]
    request = Request([7, 8], 6, forced=text)
    shown: list[int] = []

    def note(handles: list[int], logits: torch.Tensor) -> None:
        shown.extend(logits.argmax(dim=-1).tolist())

    found = answers(Generator([FakeEngine()], on_logits=note, sample_on_device=True), [request])
    expected = [alone(Request([7, 8, *text[:n]], 1))[0] for n in range(6)]
    assert found == [expected]
    assert shown == expected
