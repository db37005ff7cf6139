"""Looks at the texts of a run: hidden facts found, repeats equal, no special tokens in between."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from loguru import logger

from demo import report
from demo.flow import Answers, Questions
from demo.session import Session


def check_answers(questions: Questions, session: Session, answers: Sequence[Answers]) -> None:
    """Look at the texts: hidden facts found, repeats equal, no special tokens in between."""
    tokenizer, case = session.model.tokenizer, questions.case
    found, asked = report.needles_found(questions.prompts[0], answers[0].tokens, tokenizer)
    if asked:
        logger.info(f"Facts found in the context: {found} of {asked}")
    if case.weights != "random":
        for number, batch in enumerate(answers):
            users = report.users_with_garbage(batch.tokens, tokenizer)
            if users:
                line = f"batch {number}: special tokens within the answers of users {users}"
                if session.settings.ci:
                    pytest.fail(line, pytrace=False)
                logger.warning(line)
    if case.compare_repeats:
        compare_repeats(questions, answers)


def compare_repeats(questions: Questions, answers: Sequence[Answers]) -> None:
    """Equal prompts must have got equal answers, in any batch and any slot."""
    first: dict[str, tuple[int, int]] = {}
    for batch, prompts in enumerate(questions.prompts):
        for user, prompt in enumerate(prompts):
            known = first.setdefault(prompt.text, (batch, user))
            if answers[batch].tokens[user] != answers[known[0]].tokens[known[1]]:
                pytest.fail(
                    f"the same prompt got two answers: user {known[1]} of batch {known[0]} and "
                    f"user {user} of batch {batch}",
                    pytrace=False,
                )
    logger.info(f"Equal prompts got equal answers ({len(first)} prompts, {len(answers)} batches)")
