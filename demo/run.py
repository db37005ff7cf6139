"""One whole text demo, from its case to its record: what simple_text_demo and text_demo call."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from loguru import logger

from backends.device_specs import SPECS
from demo import report
from demo.cases import Case
from demo.checks import check_answers
from demo.flow import Questions, prepare, run_batches
from demo.modelled import modelled
from demo.records import provenance_of, save_record
from demo.session import Session, open_session
from perf.metrics import measure
from perf.profiler import Profiler
from runtime.chunking import bucket_length
from runtime.find import device_of, find_prompts
from runtime.prompts import load_entries
from runtime.settings import Settings


def skip_reason(case: Case, given: dict[str, Any], settings: Settings) -> str | None:
    """Why a case does not run here; what was asked for by hand is never skipped."""
    if settings.ci and not case.ci_only:
        return "CI runs the ci cases only"
    if settings.ci and case.optimizations == "accuracy" and not case.token_accuracy:
        return "CI runs accuracy mode for token matching only"
    rows, cols = SPECS[device_of(settings, case.default_device)].mesh_shape
    if (rows * cols) % case.data_parallel and "data_parallel" not in given:
        return f"{case.data_parallel} data-parallel groups do not fit {rows * cols} chips"
    return None


def run_text_demo(
    case: Case, given: dict[str, Any], settings: Settings, *, ttft_per_user: bool = True
) -> None:
    """Run a case, print texts and figures, append its record; gates that are missed fail it."""
    reason = skip_reason(case, given, settings)
    if reason:
        pytest.skip(reason)
    if case.token_accuracy:
        from demo.accuracy import run_accuracy_demo

        run_accuracy_demo(case, given, settings)
        return
    loading = Profiler()
    with loading("loading_inputs"):
        sets = prepare_all(case, given, settings)
    first = sets[0]
    device = device_of(settings, first.case.default_device)
    report.print_opening(first.case, first.model.config.name, device, settings.backend)
    with contextlib.ExitStack() as stack:
        with loading("loading_model"):
            session = stack.enter_context(open_session(first.case, settings, first.model))
        for questions in sets:
            answer(questions, session, loading, ttft_per_user=ttft_per_user)


def prepare_all(case: Case, given: dict[str, Any], settings: Settings) -> list[Questions]:
    """One set of questions, or one per prompt set of a sweep that fits the model's context."""
    if not case.sweep or "input_prompts" in given:
        return [prepare(case, given, settings)]
    sets = []
    for prompts in case.sweep:
        longest = max(entry.declared_tokens for entry in load_entries(find_prompts(prompts)))
        if longest > case.max_seq_len:
            logger.info(f"{prompts} is left out: it is longer than max_seq_len {case.max_seq_len}")
            continue
        try:
            sets.append(prepare(replace(case, input_prompts=prompts), given, settings))
        except pytest.skip.Exception as reason:
            logger.info(f"{prompts} is left out: {reason}")
    return sets


def answer(
    questions: Questions, session: Session, loading: Profiler, *, ttft_per_user: bool
) -> None:
    """Answer one prompt set on a loaded model, and report."""
    profiler = Profiler()
    with profiler("run"):
        answers, ops = run_batches(questions, session, profiler)
    if session.settings.backend == "dry-run":
        logger.info(f"TT-NN accepted every call for {session.device}; a dry run has no figures")
        return
    first = questions.requests[0]
    length = bucket_length(max(len(request.prompt) for request in first))
    prompt_tokens = sum(len(request.prompt) for request in first)
    metrics = measure(profiler, users=questions.case.users, prefill_tokens=prompt_tokens)
    found = modelled(session, ops, prefill_len=length)
    check_answers(questions, session, answers)
    name, prompt_rows = session.model.config.name, report.prompt_rows(questions.case, first, length)
    report.print_summary(
        report.title_of(questions.case, name, session.device, session.settings.backend),
        metrics,
        found.prediction if found else None,
        [*prompt_rows, *report.timing_rows(loading, profiler)],
        measured_on=provenance_of(session),
        device=session.device,
        whole_ttft=not ttft_per_user,
    )
    tokens = answers[0].tokens
    save_record(session, questions.case, metrics, found, tokens, prefill_len=length)
