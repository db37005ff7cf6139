"""A decode step that the device takes while the host still reads the tokens of the one before.

A step whose tokens are chosen on the device leaves its successor's inputs there, so the successor
may start at once. It counts if whoever calls next asks for just that; else it is forgotten: what
it wrote into caches lies at positions that are written again before anybody reads them.
"""

from __future__ import annotations

from typing import Any

import torch

from backends import ttnn
from runtime.sampling import DeviceSampling
from runtime.traces import Trace


class Reading:
    """Tokens on their way to the host; the device goes on meanwhile."""

    def __init__(self, mesh: Any, tokens: Any) -> None:
        self.copy = ttnn.from_device(ttnn.get_device_tensors(tokens)[0], blocking=False)
        self.event = ttnn.record_event(mesh, 0)

    def wait(self) -> torch.Tensor:
        """The tokens, int32 [B]."""
        ttnn.event_synchronize(self.event)
        return ttnn.to_torch(self.copy).reshape(-1).to(torch.int32)


class StepAhead:
    """The step that an engine started before anybody asked for it, if there is one."""

    def __init__(self, engine: Any) -> None:
        self.mesh, self.choices = engine.model.mesh, engine.choices
        self.tokens, self.positions, self.rows = (
            engine.tokens, engine.positions, engine.rope_positions,
        )  # fmt: skip
        self.pages, self.max_seq_len = engine.pages, engine.max_seq_len
        self.block_size = engine.block_size
        self.reading: Reading | None = None

    def taken(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        page_table: torch.Tensor | None,
        sampling: DeviceSampling | None,
    ) -> Reading | None:
        """The step's tokens, if the device was given what every active slot asks for now."""
        if self.reading is None or sampling is None or not self.choices.hold(sampling):
            return None
        slots, active = len(tokens), positions >= 0
        same = (
            torch.equal(self.tokens.values.reshape(-1)[:slots][active], tokens[active])
            and torch.equal(self.positions.values[:slots][active], positions[active])
            and (page_table is None or self._has_pages(page_table, active))
        )
        if not same:
            return None
        reading, self.reading = self.reading, None
        return reading

    def noted(self, reading: Reading) -> torch.Tensor:
        """A step's tokens, once it is noted what the device has put into its own inputs."""
        drawn = reading.wait()
        self.tokens.expect(drawn.reshape(1, 1, 1, -1))
        active = self.positions.values >= 0
        self.positions.expect(torch.where(active, self.positions.values + 1, -1).to(torch.int32))
        self.rows.expect(self.rows.values + 1)
        return drawn

    def _has_pages(self, page_table: torch.Tensor, active: torch.Tensor) -> bool:
        slots, columns = min(len(active), len(page_table)), page_table.shape[1]
        active = active[:slots]
        return torch.equal(self.pages.values[:slots, :columns][active], page_table[:slots][active])

    def start(
        self, trace: Trace | None, positions: torch.Tensor, page_table: torch.Tensor | None
    ) -> None:
        """Take the step after the one at `positions`, if the device has all that it needs."""
        known = self.positions.values[: len(positions)] >= 0
        same_users = torch.equal(known, positions >= 0)
        if trace is None or not trace.captured or not same_users or page_table is None:
            return
        active = torch.nonzero(positions >= 0).reshape(-1)
        following = positions[active].long() + 1
        if int(following.max()) >= self.max_seq_len or self.block_size is None:
            return
        if bool((page_table[active, following // self.block_size] >= 0).all()):
            self.reading = Reading(self.mesh, trace.execute())

    def forget(self) -> None:
        """Undo a step that nobody asked for: what it read and wrote is sent again."""
        if self.reading is not None:
            self.reading.wait()
            self.reading = None
            for buffer in (self.tokens, self.positions, self.rows):
                buffer.rewrite()
