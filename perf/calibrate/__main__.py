"""Finds the constants of the performance model, and says how good they are on rows not fitted.

    python -m perf.calibrate            writes perf/cost/constants.json
    python -m perf.calibrate --report   fits again and again on halves and prints the errors

Constants come from single-op timings first, then from one half of the published rows of whole
models (which half is written down with them); rerunning gives the same. The tables that --report
prints are made in report.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from backends.command import run
from models.numbers import argument
from models.outputs import output_file
from perf.calibrate.judge import Data, Judged, half, judge, stretch
from perf.calibrate.published_rows import FIGURES
from perf.calibrate.report import report
from perf.calibrate.sources import Sources, Table
from perf.cost.constants import PATH, as_json
from perf.op_lists.kept import ROOT

SPLITS = 8
SHIPPED_SPLIT = 0


def shipped(data: Data, splits: Sequence[Judged]) -> str:
    """Text of constants.json: basic constants of one stated half, others of all other tables."""
    split = splits[SHIPPED_SPLIT]
    table = FIGURES.parent.relative_to(ROOT)
    sources = Sources(Table(data.rows), data.op_start)
    provenance = {
        "command": "python -m perf.calibrate",
        "tables": [f"{table}/{name}.csv" for name in ("model_figures", "elsewhere", "op_timings")],
        **sources.provenance(),
        "stretch": stretch(data, splits),
        "unseen_error_percent": {
            "decode": round(100 * float(np.abs(split.speed).mean()), 1),
            "ttft": round(100 * float(np.abs(split.ttft).mean()), 1),
        },
        "fitted_rows": [str(data.rows[i]) for i in split.fitted_rows],
    }
    return as_json(sources.shipped(split.constants), provenance)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or report; 0 when all is well."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", action="store_true", help="print errors on rows not fitted")
    parser.add_argument("--splits", type=argument("splits"), default=SPLITS, help="halves to try")
    parser.add_argument("--output", type=output_file(), default=PATH, help="where constants go")
    options = parser.parse_args(arguments)
    data = Data.load()
    splits = [judge(data, f"split {n}", half(data.rows, n)) for n in range(options.splits)]
    if options.report:
        print(report(data, splits))
        return 0
    options.output.write_text(shipped(data, splits[:SPLITS]), encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    run(main, "perf.calibrate")
