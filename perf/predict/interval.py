"""How far a prediction may be off: ratios that held on sources no constant had seen.

They are wider for what lies outside of all that was fitted: another combination of model, board,
software and harness, and more so a board or model of which no figure was known at all. How much
wider was measured on what was left out: sources whose kind no other has, whole boards and families.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perf.cost.constants import provenance
from perf.cost.software import Software
from perf.op_lists.record import Workload
from perf.predict.harness import Harness


def kind_of(model: str | Path, device: str, software: Software, *, serves: bool) -> str:
    """What configurations have in common whose figures err alike."""
    from models.registry import canonical_name

    where = "server" if serves else "demo"
    return f"{canonical_name(str(model))} {device} {software.name.split('+')[0]} {where}"


@dataclass(frozen=True)
class Trust:
    """What intervals are made of: the harness, and what of a prediction was never fitted."""

    harness: str
    unknown: tuple[str, ...] = ()

    def ratios(self, figure: str) -> tuple[float, float]:
        """Measured over predicted, `figure` being decode or ttft."""
        stored = provenance()
        low, high = stored["interval"][f"{figure} {self.harness}"]
        wider = 1.0
        if self.unknown:
            stretch = stored["stretch"][figure] ** len(set(self.unknown) - {"combination"})
            wider = max(stored["far"][f"{figure} {self.harness}"], stretch)
        return low**wider, high**wider


def trust(
    harness: Harness,
    software: Software,
    *,
    device: str,
    context: int,
    host_factor: float = 1.0,
    workload: Workload | None = None,
) -> Trust:
    """Compare a prediction with what was fitted."""
    from models.registry import canonical_name

    stored = provenance()
    unknown = []
    if device not in stored["fitted_devices"]:
        unknown.append("device")
    if workload and canonical_name(str(workload.model)) not in stored["fitted_models"]:
        unknown.append("model")
    if software.name.split("+")[0] not in stored["fitted_software"]:
        unknown.append("software")
    if context > stored["longest_context"]:
        unknown.append("context")
    if host_factor != 1:
        unknown.append("host")
    if workload and not unknown:
        kind = kind_of(workload.model, device, software, serves=harness.serves)
        if kind not in stored["fitted_kinds"]:
            unknown.append("combination")
    return Trust("server" if harness.serves else "demo", tuple(unknown))
