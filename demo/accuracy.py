"""Token accuracy in a demo: the model is led through a known text, and then writes on alone."""

from __future__ import annotations

import time
from typing import Any

import pytest
from loguru import logger
from tqdm import tqdm

from demo import report
from demo.cases import Case
from demo.records import provenance_of, save_record
from demo.session import Session, fit_context, open_session
from perf.metrics import measure
from perf.profiler import Profiler
from runtime.chunking import bucket_length
from runtime.find import find_model
from runtime.requests import Request
from runtime.settings import Settings
from runtime.teacher_forcing import (
    FREE_TOKENS,
    Reference,
    TokenAccuracy,
    find_reference,
    force,
    judge_free_run,
)

JUDGED_PARAMETERS = 2e9  # Hugging Face's float32 copy of a larger model would not fit beside ours


def run_accuracy_demo(case: Case, given: dict[str, Any], settings: Settings) -> None:
    """Print and record top-1 and top-5, and judge a text written alone, which forcing cannot."""
    model = find_model(settings.checkpoint, weights=case.weights)
    case = fit_context(case, given, model.config, [])
    profiler = Profiler()
    with open_session(case, settings, model) as session:
        reference = find_reference(session.loaded.checkpoint)
        found = force_timed(session, case, reference, profiler)
        judge_alone(session, reference)
    metrics = measure(profiler, users=case.batch_size, prefill_tokens=0)
    logger.info(f"Teacher-forced over {found.num_tokens} tokens, judged by Hugging Face float32:")
    logger.info(f"Top-1: {found.top1:.2f}% | Top-5: {found.top5:.2f}%")
    report.print_average_speed(metrics, provenance_of(session))
    save_record(
        session,
        case,
        metrics,
        None,
        [found.chosen],
        prefill_len=bucket_length(reference.prompt_len),
        accuracy=found,
    )


def force_timed(
    session: Session, case: Case, reference: Reference, profiler: Profiler
) -> TokenAccuracy:
    """Force the text on all users, who must all choose the same tokens; time every step."""
    steps = min(case.max_generated_tokens, len(reference.forced))
    last = time.perf_counter()
    with tqdm(total=steps, desc="teacher forcing", leave=False, disable=None) as bar:

        def note_token(count: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if count > 1:  # the first token is prefill's
                profiler.add("inference_decode", now - last)
            last = now
            bar.update()

        users = force(
            session.loaded.engines[0],
            reference,
            num_tokens=steps,
            users=case.batch_size,
            on_token=note_token,
        )
    different = [user for user, found in enumerate(users) if found.chosen != users[0].chosen]
    if different:
        logger.warning(f"users {different} chose other tokens than user 0 for the same text")
    return users[0]


def judge_alone(session: Session, reference: Reference) -> None:
    """Let the model write alone after the prompt; garbage fails, where Hugging Face can judge."""
    from demo.pcc_check import reference_of

    generator = session.generator
    generator.reset()
    request = Request(reference.prompt, FREE_TOKENS)
    tokens = [step.tokens[0] for step in generator.generate([request])]
    tokenizer = session.model.tokenizer
    logger.info(f"==TEXT BEFORE\n...{tokenizer.decode(reference.prompt)[-200:]}")
    logger.info(f"==WRITTEN ALONE\n{tokenizer.decode(tokens)}\n")
    if session.model.config.num_parameters > JUDGED_PARAMETERS:
        logger.info("The text is not judged: Hugging Face's copy of the model would be too large")
        return
    verdict = judge_free_run(reference, tokens, reference_of(session))
    logger.info(str(verdict))
    if not verdict.passed and not session.case.num_layers:
        pytest.fail(f"the model writes garbage: {verdict}", pytrace=False)
