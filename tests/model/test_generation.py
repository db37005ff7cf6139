"""A generator on a real engine: whoever comes and goes, every user gets the text it gets alone."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from models.checkpoints import RandomCheckpoint
from runtime.generator import Generator
from runtime.requests import Request
from runtime.sampling import SamplingParams, device_sampling
from tests.model.helpers import answers, engine_of, random_pages
from tests.tiny_models import tiny_config

CHECKPOINT = RandomCheckpoint(tiny_config("llama-linear", num_layers=2), seed=0)
VOCAB = CHECKPOINT.config.vocab_size


def schedule(seed: int) -> list[Request]:
    """Prompts of which many begin alike, of different lengths and answers."""
    rng = random.Random(seed)
    beginning = [rng.randrange(VOCAB) for _ in range(150)]
    return [
        Request(
            [*beginning[: rng.choice((0, 64, 150))], *(rng.randrange(VOCAB) for _ in range(20))],
            rng.randint(1, 12),
        )
        for _ in range(10)
    ]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    with engine_of(CHECKPOINT, batch=1) as engine:
        generator = Generator([engine])
        found = []
        for request in schedule(0):
            generator.reset()
            found += answers(generator, [request])
        return found


@pytest.mark.parametrize(
    ("share_prefixes", "on_device"), [(False, False), (True, False), (False, True)]
)
def test_continuous_batching_gives_every_user_the_text_it_gets_alone(
    alone: list[list[int]], share_prefixes: bool, on_device: bool
) -> None:
    with engine_of(CHECKPOINT, batch=4, num_blocks=26) as engine:
        generator = Generator(
            [engine], page_seed=1, share_prefixes=share_prefixes, sample_on_device=on_device
        )
        assert answers(generator, schedule(0)) == alone


def joined_later(engine: Any, requests: list[Request], eos: int) -> dict[int, list[int]]:
    """Answers of users who come one by one, every fifth step."""
    generator = Generator([engine], page_seed=1, sample_on_device=True, eos_ids=[eos])
    found: dict[int, list[int]] = {}
    waiting, steps = list(requests), 0
    while waiting or not all(map(generator.is_finished, found)):
        if steps % 5 == 0 and waiting:
            found[generator.add(waiting.pop(0))] = []
        step = generator.step()
        steps += 1
        for handle, token in step.tokens.items() if step else ():
            found[handle].append(token)
    return found


def counted(engine: Any) -> dict[str, int]:
    """How many steps that started ahead are taken, and how many forgotten, from now on."""
    counts = {"taken": 0, "forgotten": 0}
    ahead = engine.ahead
    take, forget = ahead.taken, ahead.forget

    def taken(*step: Any) -> Any:
        reading = take(*step)
        counts["taken"] += reading is not None
        return reading

    def forgotten() -> None:
        counts["forgotten"] += ahead.reading is not None
        forget()

    ahead.taken, ahead.forget = taken, forgotten
    return counts


def test_steps_that_start_before_they_are_asked_for_change_no_text(
    alone: list[list[int]],
) -> None:
    """Users come while others answer, and end at other steps, some at an end token."""
    eos = alone[0][len(alone[0]) // 2]
    requests = [replace(r, max_new_tokens=3 * r.max_new_tokens) for r in schedule(0)]
    found, counts = [], []
    for ahead in (False, True):
        with engine_of(CHECKPOINT, batch=4, num_blocks=40, trace=True) as engine:
            engine.goes_ahead = ahead
            counts.append(counted(engine))
            found.append(joined_later(engine, requests, eos))
    assert found[1] == found[0]
    assert counts[0] == {"taken": 0, "forgotten": 0}
    assert counts[1]["taken"] > 20
    assert counts[1]["forgotten"] > 2


def test_a_step_ahead_is_taken_from_callers_with_any_rows_in_their_page_tables() -> None:
    """A table may have a row for each slot where tokens are of the first few users alone."""
    sampling, found = device_sampling([SamplingParams()]), []
    with engine_of(CHECKPOINT, batch=3, trace=True) as engine:
        counts, pages = counted(engine), random_pages(engine)
        for rows in (1, 3):
            engine.reset()
            engine.prefill([schedule(0)[0].prompt], slots=[0], page_table=pages)
            tokens, first = [torch.tensor([7], dtype=torch.int32)], len(schedule(0)[0].prompt)
            for step in range(6):
                position = torch.tensor([first + step], dtype=torch.int32)
                how = {"page_table": pages[:rows], "sampling": sampling, "more": True}
                tokens.append(engine.decode(tokens[-1][:1], position, **how))
            found.append(torch.stack([token[0] for token in tokens]))
    assert torch.equal(found[0], found[1])
    assert counts["taken"] >= 8
