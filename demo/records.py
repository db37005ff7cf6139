"""The line a demo leaves in generated/benchmark_records.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
from loguru import logger

from backends.device_specs import SPECS
from demo.cases import Case, GalaxyCase
from demo.session import Session
from perf.metrics import Metrics
from perf.record import (
    BenchmarkRecord,
    append_record,
    current_command,
    current_commit,
    software_versions,
)

if TYPE_CHECKING:
    from demo.modelled import Modelled
    from perf.gate import Verdict
    from perf.targets import Target
    from runtime.teacher_forcing import TokenAccuracy


def provenance_of(session: Session) -> str:
    """Where a run's wall-clock figures come from: the device, or the host that emulates it."""
    return "measured" if session.settings.backend == "silicon" else "host"


def optimizations_of(case: Case) -> str:
    """The precision a run was made with: a preset or settings, and the decoder file over it."""
    if case.decoder_config_file is None:
        return case.optimizations
    return f"{case.optimizations} + {case.decoder_config_file.name}"


def published_target(session: Session, case: Case, prefill_len: int) -> Target | None:
    """What is published for this very run; None where nothing is, or where the model was cut."""
    from perf.targets import find_target

    if case.num_layers or case.weights != "instruct":
        return None
    return find_target(
        session.model.config.name,
        session.device,
        batch_size=case.batch_size,
        prefill_len=prefill_len,
        optimizations=optimizations_of(case),
        data_parallel=case.data_parallel,
        images=case.images,
        demo="text_demo" if isinstance(case, GalaxyCase) else "simple_text_demo",
    )


def figures_of(target: Target | None) -> dict[str, float] | None:
    """A target's figures as they are recorded."""
    if target is None:
        return None
    names = ("tokens_per_s_per_user", "ttft_ms", "top1", "top5")
    figures = {name: getattr(target, name) for name in names}
    return {name: value for name, value in figures.items() if value is not None}


def judge(
    session: Session, target: Target | None, metrics: Metrics, modelled: Modelled | None
) -> Verdict | None:
    """Measured figures are held against published ones, modelled ones against recorded ones."""
    if provenance_of(session) != "measured":
        return modelled.verdict if modelled else None
    from perf.gate import check_measured

    return check_measured(
        target, tokens_per_s_per_user=metrics.tokens_per_s_per_user, ttft_ms=metrics.ttft_ms
    )


def save_record(
    session: Session,
    case: Case,
    metrics: Metrics,
    modelled: Modelled | None,
    answers: Sequence[Sequence[int]],
    *,
    prefill_len: int,
    accuracy: TokenAccuracy | None = None,
) -> None:
    """Append the run's record, modelled figures where there are any; fail a missed gate."""
    settings = session.settings
    figures = modelled.prediction if modelled else metrics
    target = published_target(session, case, prefill_len)
    verdict = judge(session, target, metrics, modelled)
    record = BenchmarkRecord(
        model=session.model.config.name,
        backend=settings.backend,
        device=session.device,
        mesh_shape=SPECS[session.device].mesh_shape,
        data_parallel=case.data_parallel,
        batch_size=case.batch_size,
        prefill_len=prefill_len,
        generated_tokens=max(map(len, answers)),
        optimizations=optimizations_of(case),
        provenance="modelled" if modelled else provenance_of(session),
        ttft_ms=figures.ttft_ms,
        tokens_per_s_per_user=figures.tokens_per_s_per_user,
        tokens_per_s=figures.tokens_per_s,
        host_ttft_ms=metrics.ttft_ms,
        host_tokens_per_s_per_user=metrics.tokens_per_s_per_user,
        top1=accuracy.top1 if accuracy else None,
        top5=accuracy.top5 if accuracy else None,
        target=figures_of(target),
        gate=None if verdict is None else verdict.status,
        case=case.id,
        num_layers=case.num_layers or session.model.config.num_layers,
        weights=case.weights,
        versions=software_versions(),
        commit=current_commit(),
        command=current_command(),
    )
    append_record(record)
    if record.target:
        published = ", ".join(f"{name} {value:g}" for name, value in record.target.items())
        logger.info(f"Published for this run: {published}")
    if verdict is not None:
        logger.info(f"Gate: {verdict.status}{f' ({verdict.message})' if verdict.message else ''}")
        if verdict.failed:  # after the record is written: a slow run is worth keeping
            pytest.fail(verdict.message, pytrace=False)
