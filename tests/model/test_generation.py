"""A generator on a real engine: whoever comes and goes, every user gets the text it gets alone."""

import random

import pytest

from models.checkpoints import RandomCheckpoint
from runtime.generator import Generator
from runtime.requests import Request
from tests.model.helpers import engine_of
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


def answers(generator: Generator, requests: list[Request]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in requests]
    for step in generator.generate(requests):
        for number, token in step.tokens.items():
            found[number].append(token)
    return found


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
