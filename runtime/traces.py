"""A recorded forward pass that the device replays without the host.

Capture after an eager run (which compiles), make what is to stay before it, and change inputs
only by writing into the buffers the recorded ops read. What a recording writes between its ops is
free to the allocator: programs compiled since may keep tables there (reshape does), which a replay
would destroy. So a recording is made anew when there are more programs, and runs eagerly before:
programs of others keep semaphores in L1, too, and some of a pass are compiled for places there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from backends import op_record, ttnn


class Trace:
    """One trace on one mesh; its output tensor is rewritten by every replay."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self.id: Any = None
        self.programs = -1  # of the mesh when it was last run eagerly, or captured
        self.output: Any = None
        self.ops: list[op_record.OpRecord] = []  # what a replay runs

    @property
    def is_compiled(self) -> bool:
        """Whether it can be captured: no program was compiled since it ran."""
        programs: int = self.mesh.num_program_cache_entries()
        return self.programs == programs

    @property
    def captured(self) -> bool:
        """Whether it can be replayed: no program was compiled since."""
        return self.id is not None and self.is_compiled

    @property
    def is_stale(self) -> bool:
        """Whether it has to be recorded anew."""
        return self.id is not None and not self.captured

    def compile(self, run: Callable[[], Any]) -> Any:
        """Run without recording; what it gives."""
        self.release()
        out = run()
        self.programs = self.mesh.num_program_cache_entries()
        return out

    def capture(self, run: Callable[[], Any]) -> None:
        """Record the ops of `run`; what they compute during capture is not a result."""
        self.release()
        self.id = ttnn.begin_trace_capture(self.mesh, cq_id=0)
        try:
            try:
                with op_record.record_apart() as self.ops:
                    self.output = run()
            finally:
                ttnn.end_trace_capture(self.mesh, self.id, cq_id=0)
        except BaseException:  # nobody replays half a pass, or could release it later
            with suppress(RuntimeError):  # what went wrong first is what to say
                self.release()
            raise
        self.programs = self.mesh.num_program_cache_entries()

    def execute(self) -> Any:
        """Replay and return the output tensor."""
        ttnn.execute_trace(self.mesh, self.id, cq_id=0, blocking=False)
        for record in self.ops if op_record.recording() else ():
            op_record.append(record)
        return self.output

    def release(self) -> None:
        """Free the recorded commands."""
        if self.id is not None:
            ttnn.release_trace(self.mesh, self.id)
            self.id = self.output = None
