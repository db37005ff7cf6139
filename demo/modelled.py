"""Figures of the product for the very calls a run made, from the performance model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.device_specs import SPECS
from demo.session import Session

if TYPE_CHECKING:
    from demo.flow import OpLists
    from perf.predict import Prediction


def modelled(session: Session, ops: OpLists, *, prefill_len: int) -> Prediction | None:
    """Prediction for the session's device; None on hardware and where a phase did not run."""
    if session.settings.backend == "silicon" or not (ops.prefill and ops.decode):
        return None
    from perf.op_list import OpList, RunOps
    from perf.predict import predict_ops
    from runtime.loading import group_shape

    case, spec = session.case, SPECS[session.device]
    groups = case.data_parallel
    # groups run the same calls one after the other here; on the product they run side by side
    prefill, decode = (calls[: len(calls) // groups] for calls in (ops.prefill, ops.decode))
    reads_logits = not session.generator.sample_on_device
    logits = session.loaded.engines[0].vocab_size * case.batch_size
    run = RunOps(
        decode=OpList.of_records(decode, logits if reads_logits else 0),
        prefill=OpList.of_records(prefill, logits),
        prefill_users=case.batch_size,
        mesh_shape=group_shape(spec, groups),
    )
    return predict_ops(
        run,
        spec,
        users=case.batch_size,
        prefill_len=prefill_len,
        context=prefill_len + case.max_generated_tokens // 2,
        data_parallel=groups,
    )
