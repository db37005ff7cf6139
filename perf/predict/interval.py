"""How far a prediction may be off: ratios that held on sources no constant had seen.

They are wider for what lies outside of all that was fitted: another board, model or software, a
longer context. How much wider was measured by leaving whole boards and families out.
"""

from __future__ import annotations

from dataclasses import dataclass

from perf.cost.constants import provenance
from perf.cost.software import Software
from perf.op_lists.record import Workload
from perf.predict.harness import Harness


@dataclass(frozen=True)
class Trust:
    """What intervals are made of: the harness, and what of a prediction was never fitted."""

    harness: str
    unknown: tuple[str, ...] = ()

    def ratios(self, figure: str) -> tuple[float, float]:
        """Measured over predicted, `figure` being decode or ttft."""
        stored = provenance()
        low, high = stored["interval"][f"{figure} {self.harness}"]
        middle = (low * high) ** 0.5
        stretch = stored["stretch"][figure] ** len(self.unknown)
        return middle * (low / middle) ** stretch, middle * (high / middle) ** stretch


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
    return Trust("server" if harness.serves else "demo", tuple(unknown))
