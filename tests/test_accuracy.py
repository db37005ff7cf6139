"""Token accuracy of the default model by teacher forcing, and of the text it writes alone.

Expected shares stand in perf/targets.json and hold within half a point; they were measured on the
emulator, whose arithmetic is reproducible to the digit.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from perf.targets import accuracy_target
from runtime.teacher_forcing import (
    load_reference,
    mean_log_likelihood,
    run_forced,
    score,
    write_alone,
)
from tests.model.helpers import BF16, engine_of

TOLERANCE = 0.5  # percent
ALONE_STEPS = 64


@functools.cache
def _checkpoint() -> Any:
    from models.checkpoints.open import open_checkpoint

    return open_checkpoint("default")


def _reference() -> Any:
    return load_reference(_checkpoint().config.name, _checkpoint().fingerprint)


@pytest.mark.parametrize("optimizations", ["performance", BF16], ids=["performance", "bf16-hifi4"])
def test_forced_tokens_match_as_often_as_recorded(optimizations: str) -> None:
    expected = accuracy_target(_checkpoint().config.name, "N150", optimizations)
    with engine_of(_checkpoint(), optimizations=optimizations, max_seq_len=1024) as engine:
        found = run_forced(engine, _reference())
    assert found.steps == 512
    assert found.top1 == pytest.approx(expected.top1, abs=TOLERANCE)
    assert found.top5 == pytest.approx(expected.top5, abs=TOLERANCE)


def test_a_text_written_alone_is_likely_under_hf() -> None:
    from models.checkpoints.reference import build_reference

    judge, reference = build_reference(_checkpoint()), _reference()
    with engine_of(_checkpoint(), optimizations="performance") as engine:
        alone = write_alone(engine, reference, ALONE_STEPS)
    likely = mean_log_likelihood(judge, reference.prompt, alone)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(judge.config.vocab_size, (ALONE_STEPS,), generator=generator).tolist()
    book = mean_log_likelihood(judge, reference.prompt, reference.forced[:ALONE_STEPS])
    # greedy text is likelier than the book's own words; garbage is near 1 / vocabulary
    assert likely > book > mean_log_likelihood(judge, reference.prompt, noise) + 3


def test_score_counts_best_and_five_best() -> None:
    top5 = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [1, 2, 3, 4, 5]])
    assert score([1, 9, 11], top5).top1 == pytest.approx(100 / 3)
    assert score([1, 9, 11], top5).top5 == pytest.approx(200 / 3)


def test_a_reference_of_other_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="made from other weights"):
        load_reference(_checkpoint().config.name, "another fingerprint")
