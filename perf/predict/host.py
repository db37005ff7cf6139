"""What the host adds to the device's time: inputs and logits of a step, work around a prefill."""

from __future__ import annotations

import math
from dataclasses import dataclass

from perf.cost.constants import Constants
from perf.cost.units import Situation
from perf.op_lists.record import BLOCK, RunOps
from perf.predict.harness import DEMO, Harness

TRACED_UP_TO = 1024  # tokens of a prefill that newer software replays from a trace


def decode_host_ms(
    run: RunOps,
    state: Situation,
    data_parallel: int = 1,
    harness: Harness = DEMO,
    *,
    device_ms: float,
) -> float:
    """Host work that a decode step waits for, the reading of logits included.

    Where tokens are chosen on the device and read while it takes the next step, its work on a step
    is in the way only as far as it takes longer than the device (`device_ms`), and where a user's
    next position needs a new page. Every chip is handed its inputs and told to begin by itself.
    """
    c, software = state.constants, state.software
    further = math.prod(run.mesh_shape) - 1
    host_ms = c.host_step_ms + data_parallel * further * c.host_step_chip_ms
    if software.lean_host:
        host_ms -= min(c.host_lean_ms, c.host_step_ms)
    if software.reads_behind and not run.decode.host_elements:
        host_ms = max(host_ms / BLOCK, host_ms - device_ms)
    host_ms += (data_parallel - 1) * c.host_group_ms + harness.step_ms(c)
    if run.decode.host_elements:
        own = run.decode.ops[-1].record.outputs[0].shape
        own_elements = own[-1] * min(32, own[-2] if len(own) > 1 else 1)
        read = run.decode.host_elements / 1e6
        if harness.slots and not software.samples_idle_slots:
            read *= min(1.0, state.active_users / harness.slots)
        each = c.server_logits_ms if harness.serves else c.host_logits_ms
        host_ms += read * (each + (data_parallel - 1) * c.host_group_logits_ms)
        host_ms += own_elements / 1e6 * c.host_logits_chip_ms
    return c.host_factor * host_ms


@dataclass(frozen=True)
class PrefillRun:
    """How a prefill is driven: what its host work depends on."""

    users: int
    traced: bool
    data_parallel: int = 1
    together: int = 1  # users of one pass
    samples: bool = True  # the host picks every user's first token
    beside: bool = False  # groups prefill at the same time
    waits: bool = False  # the host sends an op when the one before has ended

    @classmethod
    def of(
        cls, run: RunOps, state: Situation, *, users: int, prefill_len: int, data_parallel: int = 1
    ) -> PrefillRun:
        """How the software of a situation drives it."""
        software = state.software
        one_each = users <= run.prefill_users
        return cls(
            users,
            software.traced_prefill and prefill_len <= TRACED_UP_TO,
            data_parallel,
            run.prefill_users,
            run.decode.host_elements > 0,
            software.groups_beside and (one_each or state.spec.arch == "blackhole"),
            software.waits_for_dispatch,
        )

    def share(self, c: Constants) -> float:
        """Of a pass's time on the device that counts for it.

        Groups beside each other divide it; those that take turns begin before the last one ends.
        """
        if self.beside:
            return 1 / self.data_parallel
        return c.group_overlap if self.data_parallel > 1 else 1.0

    def host_us(self, device_us: float, dispatch_us: float, c: Constants) -> dict[str, float]:
        """Host time of a pass beside the device's: waiting for dispatch, work per user.

        Groups that run beside each other wait for the host, which sends one after the other.
        """
        sent = 0.0 if self.traced else dispatch_us
        waiting = sent if self.waits else max(0.0, sent - device_us)
        if self.beside:
            waiting = (waiting + (self.data_parallel - 1) * sent) / self.data_parallel
        work = c.host_traced_ms if self.traced else c.host_prefill_ms
        if self.together > 1:
            work += self.together * c.host_each_ms
        elif self.users > 1 and self.samples:
            work += c.host_batch_ms
        return {"dispatch": waiting, "host": 1000 * c.host_factor * work}
