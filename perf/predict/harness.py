"""How figures are taken: by a demo, at its first token, or through a server.

A demo reports means of a run. A server keeps a fixed number of decode slots, idle ones too, samples
on the host only for those who are there, answers all waiting prompts before the next step, and is
timed by a client. Next: figures.py adds what a harness costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from perf.cost.constants import Constants
from perf.cost.software import Software

REQUESTS = 8  # of a series, as release reports count them


@dataclass(frozen=True)
class Harness:
    """One way to time a model."""

    name: str
    slots: int = 0  # decode slots that are always there; 0: as many as users
    generated: int | None = None  # tokens of a run; None: as the caller says
    serves: bool = False

    def step_ms(self, c: Constants) -> float:
        """Host work of a step beside the demo's."""
        return c.server_step_ms if self.serves else 0.0

    def ttft_ms(
        self, per_user: float, users: int, step: float, c: Constants, software: Software, *,
        requests: int = REQUESTS,
    ) -> float:  # fmt: skip
        """The time to first token that is reported: a mean over all users and requests.

        A server answers all prompts that wait before it goes on; what its first request waits is
        spread over the requests of a series.
        """
        if not self.serves:
            return per_user
        waiting = 0.0
        if software.slow_first_request:
            waiting = c.server_first_steps * step / requests
            if software.samples_idle_slots:
                waiting *= c.server_early_first
        return c.server_ttft_ms + users * per_user + waiting


DEMO = Harness("demo")
HARNESSES: Mapping[str, Harness] = MappingProxyType(
    {
        harness.name: harness
        for harness in (
            DEMO,
            Harness("first-token", generated=1),
            Harness("server", slots=32, serves=True),
        )
    }
)
