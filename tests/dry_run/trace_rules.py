"""Breaks each rule of traces on a mock N150 and writes what the dry run said."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backends

backends.select("dry-run", "N150")

from backends import ttnn  # noqa: E402
from backends.mesh import open_mesh  # noqa: E402
from runtime.traces import Trace  # noqa: E402


class Pass:
    """Two matrix products in a row, as a trace would hold them."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self.x, self.w, self.v = self.make(32, 4096), self.make(4096, 1024), self.make(1024, 4096)
        self.row = self.make(1, 16384)

    def make(self, rows: int, columns: int) -> Any:
        shape = [1, 1, rows, columns]
        return ttnn.empty(
            shape, ttnn.bfloat16, ttnn.TILE_LAYOUT, self.mesh, ttnn.DRAM_MEMORY_CONFIG
        )

    def __call__(self) -> Any:
        inner = ttnn.linear(self.x, self.w)
        out = ttnn.linear(inner, self.v)
        ttnn.deallocate(inner)
        return out

    def capture(self, run: Callable[[], Any]) -> tuple[int, Any]:
        trace = ttnn.begin_trace_capture(self.mesh, cq_id=0)
        try:
            out = run()
        finally:
            ttnn.end_trace_capture(self.mesh, trace, cq_id=0)
        return trace, out

    def replay(self, trace: int) -> None:
        ttnn.execute_trace(self.mesh, trace, cq_id=0, blocking=False)


def good(run: Pass) -> None:
    run()
    trace, out = run.capture(run)
    run.replay(trace)
    ttnn.to_torch(out)
    scratch = run.make(32, 32)
    ttnn.deallocate(scratch)
    run.replay(trace)
    ttnn.release_trace(run.mesh, trace)


def new_program(run: Pass) -> None:
    run.capture(run)


def host_read(run: Pass) -> None:
    run()
    run.capture(lambda: ttnn.to_torch(run()))


def lost_input(run: Pass) -> None:
    run()
    trace, _out = run.capture(run)
    ttnn.deallocate(run.w)
    run.replay(trace)


def overwritten(run: Pass) -> None:
    run()
    trace, _out = run.capture(run)
    kept = run.make(32, 1024)  # takes the place of the pass's inner product
    run.replay(trace)
    ttnn.deallocate(kept)


def compile_more(run: Pass) -> None:
    """A program that keeps a table on the device, where the pass's inner product was."""
    ttnn.deallocate(ttnn.reshape(run.row, (1, 1, 8, 2048)))


def table_of_a_program(run: Pass) -> None:
    run()
    trace, _out = run.capture(run)
    compile_more(run)
    run.replay(trace)


def captured_anew(run: Pass) -> None:
    run()
    trace = Trace(run.mesh)
    trace.capture(run)
    assert trace.captured
    compile_more(run)
    assert not trace.captured
    trace.capture(run)
    assert trace.captured
    trace.execute()


def left_by_another(run: Pass) -> None:
    def product() -> Any:
        return ttnn.linear(run.x, run.w)

    run()
    first, _out = run.capture(run)
    ttnn.deallocate(product())  # takes the place of the pass's inner product, for a moment
    second, left = run.capture(product)  # takes it, too, and is read before the next replay
    run.replay(second)
    ttnn.to_torch(left)
    run.replay(first)


def released(run: Pass) -> None:
    run()
    trace, _out = run.capture(run)
    ttnn.release_trace(run.mesh, trace)
    run.replay(trace)


def main() -> None:
    answers = {}
    cases = (
        good, new_program, host_read, lost_input, overwritten, table_of_a_program, captured_anew,
        left_by_another, released,
    )  # fmt: skip
    for case in cases:
        with open_mesh("N150") as mesh:
            try:
                case(Pass(mesh))
                answers[case.__name__] = ""
            except RuntimeError as error:
                answers[case.__name__] = str(error)
    Path(sys.argv[1]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
