"""Figures of the product for the very calls a run made, from the performance model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.device_specs import SPECS
from demo.cases import Case
from demo.session import Session
from runtime.sampling import SamplingParams

if TYPE_CHECKING:
    from demo.flow import OpLists
    from perf.gate import Verdict
    from perf.op_lists.record import RunOps
    from perf.predict.figures import Prediction


@dataclass(frozen=True)
class Modelled:
    """What the model predicts for a run, and what the gate says to it."""

    prediction: Prediction
    verdict: Verdict | None = None  # None: no run of a kind that is recorded


def modelled(session: Session, ops: OpLists, *, prefill_len: int) -> Modelled | None:
    """Prediction for the session's device; None on hardware and where a phase did not run."""
    if session.settings.backend == "silicon" or not (ops.prefill and ops.decode):
        return None
    from perf.predict.figures import predict_ops

    case = session.case
    run = run_of(session, ops)
    prediction = predict_ops(
        run,
        SPECS[session.device],
        users=case.batch_size,
        prefill_len=prefill_len,
        context=prefill_len + case.max_generated_tokens // 2,
        data_parallel=case.data_parallel,
    )
    return Modelled(prediction, verdict_on(session, run, prefill_len=prefill_len))


def run_of(session: Session, ops: OpLists) -> RunOps:
    """The calls of one data-parallel group."""
    from perf.op_lists.record import OpList, RunOps
    from runtime.blueprint import group_shape

    case = session.case
    groups = case.data_parallel
    # groups run the same calls one after the other here; on the product they run side by side
    prefill, decode = (calls[: len(calls) // groups] for calls in (ops.prefill, ops.decode))
    reads_logits = not any(call.name == "sampling" for call in decode)
    logits = session.loaded.engines[0].vocab_size * case.batch_size
    return RunOps(
        decode=OpList.of_records(decode, logits if reads_logits else 0),
        prefill=OpList.of_records(prefill, logits),
        prefill_users=case.batch_size,
        mesh_shape=group_shape(SPECS[session.device], groups),
        grid=session.loaded.plan.spec.compute_grid,
    )


def verdict_on(session: Session, run: RunOps, *, prefill_len: int) -> Verdict | None:
    """The calls against the recorded prediction; None where the user asked for something else."""
    if not _as_recorded(session.case) or not session.generator.sample_on_device:
        return None
    from perf.gate import check_modelled
    from perf.op_lists.record import Workload

    case = session.case
    workload = Workload(
        session.model.config.name,
        SPECS[session.device],
        batch_size=case.batch_size,
        prefill_len=prefill_len,
        optimizations=case.optimizations,
        data_parallel=case.data_parallel,
        images=case.images,
    )
    return check_modelled(run, workload)


def _as_recorded(case: Case) -> bool:
    """Predictions are recorded for whole models that choose the likeliest token from pages."""
    whole = case.num_layers is None and case.decoder_config_file is None
    how = case.sampling_params
    likeliest = isinstance(how, SamplingParams) and how.greedy and not how.penalised
    return whole and likeliest and case.paged_attention
