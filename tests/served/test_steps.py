"""Steps of vLLM's own scheduler on a fake engine: thousands of requests, and not one wrong page."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM makes an engine

from vllm import SamplingParams

from tests.served.paged_fake import (
    CONTEXT,
    PAGES,
    USERS,
    VOCAB,
    expected,
    make_engine,
    runner_of,
    scheduler_of,
)

CANCELLED_SHARE = 0.2


ON_DEVICE, GROUPS = {"sample_on_device_mode": "all"}, {"data_parallel": 2}


@pytest.fixture(params=[{}, ON_DEVICE, GROUPS], ids=["host", "device", "groups"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """vLLM's engine over a fake one; prompts are cut into chunks, pages are few."""
    made = make_engine(tmp_path, additional_config={"tt": request.param})
    yield made
    made.engine_core.shutdown()


class Crowd:
    """Random requests, some of which begin alike and some of which go away."""

    def __init__(self, engine: Any, seed: int) -> None:
        self.engine, self.draw = engine, random.Random(seed)
        self.heads = [self._text(64) for _ in range(4)]
        self.open: dict[str, list[int]] = {}
        self.answered = self.cancelled = self.count = self.preempted = 0

    def _text(self, length: int) -> list[int]:
        return [self.draw.randrange(VOCAB) for _ in range(length)]

    def add(self) -> None:
        draw, name = self.draw, str(self.count)
        prompt = draw.choice([*self.heads, []]) + self._text(draw.randint(1, 150))
        tokens = draw.randint(1, 60)
        extra: dict[str, Any] = draw.choice(
            [{}, {"seed": 1, "temperature": 1.0}, {"temperature": 0.7, "top_k": 8},
             {"presence_penalty": 0.1}]
        )  # fmt: skip
        sampling = SamplingParams(**{"temperature": 0.0, **extra}, max_tokens=tokens)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        self.open[name] = expected(prompt, tokens)
        self.count += 1

    def step(self) -> None:
        for output in self.engine.step():
            answer, found = self.open[output.request_id], list(output.outputs[0].token_ids)
            assert found == answer[: len(found)], f"request {output.request_id} after {self.count}"
            if output.finished:
                assert found == self.open.pop(output.request_id)
                self.answered += 1
        if self.open and self.draw.random() < CANCELLED_SHARE / 10:
            name = self.draw.choice(list(self.open))
            self.engine.abort_request([name])
            del self.open[name]
            self.cancelled += 1

    def run(self, requests: int) -> None:
        while self.count < requests or self.open:
            while self.count < requests and len(self.open) < 2 * USERS:
                self.add()
            self.step()
        self.engine.step()  # tells the worker who left last


def check_nothing_is_left(engine: Any) -> None:
    """Every page and every slot is free again."""
    runner, pool = runner_of(engine), scheduler_of(engine).kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # page 0 is vLLM's own
    assert not runner.requests and not runner.host.batch.num_reqs
    assert pool.get_usage() == 0
    for free, table in zip(runner.free, runner.tables, strict=True):
        assert sorted(free) == list(range(USERS // len(runner.engines)))
        assert bool((table == -1).all())


def test_random_requests_get_their_own_answers_and_leave_no_page_behind(engine: Any) -> None:
    crowd = Crowd(engine, seed=0)
    crowd.run(300)
    check_nothing_is_left(engine)
    assert crowd.cancelled and crowd.answered + crowd.cancelled == 300
    for fake in runner_of(engine).engines:
        assert fake.chunks, "no prompt was cut or found in the cache: the test tests nothing"
        assert bool(fake.decodes_on_device) == runner_of(engine).sample_on_device


@pytest.mark.full
def test_ten_thousand_requests(engine: Any) -> None:
    crowd = Crowd(engine, seed=1)
    crowd.run(10_000)
    check_nothing_is_left(engine)


@pytest.mark.parametrize("groups", [1, 2])
def test_preempted_requests_go_on_where_they_were(tmp_path: Path, groups: int) -> None:
    extra = {"tt": {"data_parallel": groups}}
    engine = make_engine(tmp_path, enable_prefix_caching=False, additional_config=extra)
    preempted = []
    scheduler = scheduler_of(engine)
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *rest, **more: (
        preempted.append(request.request_id), preempt(request, *rest, **more)
    )[1]  # fmt: skip
    draw = random.Random(2)
    answers = {}
    for number in range(USERS):
        prompt = [draw.randrange(VOCAB) for _ in range(120)]
        sampling = SamplingParams(temperature=0.0, max_tokens=150)
        engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
        answers[str(number)] = expected(prompt, 150)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                assert list(output.outputs[0].token_ids) == answers.pop(output.request_id)
    assert not answers and preempted


def test_a_cancelled_request_frees_its_pages_at_once(engine: Any) -> None:
    pool = scheduler_of(engine).kv_cache_manager.block_pool
    prompt = {"prompt_token_ids": [1] * 80}
    engine.add_request("gone", prompt, SamplingParams(temperature=0.0, max_tokens=100))
    engine.step()
    assert pool.get_num_free_blocks() < pool.num_gpu_blocks - 1
    engine.abort_request(["gone"])
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def test_each_group_has_pages_for_all_its_users(tmp_path: Path) -> None:
    """What fits one group's pages is not kept waiting by the other's."""
    engine = make_engine(
        tmp_path, additional_config={"tt": GROUPS}, max_num_batched_tokens=4 * CONTEXT
    )
    scheduler, runner = scheduler_of(engine), runner_of(engine)
    sampling = SamplingParams(temperature=0.0, max_tokens=8)
    for number in range(USERS):  # five pages each, of 23 in a group
        engine.add_request(str(number), {"prompt_token_ids": [number + 1] * 140}, sampling)
    engine.step()
    names = [request.request_id for request in scheduler.running]
    assert len(names) == USERS
    held = [scheduler.kv_cache_manager.get_block_ids(name)[0] for name in names]
    size = PAGES // 2
    assert sorted(ids[0] // size for ids in held) == [0] * 4 + [1] * 4
    assert all(page // size == ids[0] // size and page % size for ids in held for page in ids)
    assert [len(free) for free in runner.free] == [0, 0]
    while engine.has_unfinished_requests():
        engine.step()


def test_a_chunked_seeded_request_draws_as_a_whole_one(tmp_path: Path) -> None:
    """Rows of unfinished prompts are sampled and thrown away: that must use up no number."""
    sampling = SamplingParams(temperature=2.0, seed=7, max_tokens=20)
    prompt = {"prompt_token_ids": [3] * 200}
    found = []
    for budget in (96, 512):
        engine = make_engine(tmp_path, max_num_batched_tokens=budget)
        runner_of(engine).engines[0].height = 1.0
        engine.add_request("x", prompt, sampling)
        while engine.has_unfinished_requests():
            outputs = engine.step()
        found.append(list(outputs[0].outputs[0].token_ids))
    assert found[0] == found[1] and len(set(found[0])) > 5
