"""One model over devices, batches, contexts, precisions and groups: what a buyer or planner asks.

    python -m perf.sweep --model Llama-3.1-8B --devices N150,N300,T3K,P150 --batch 1,8,32 \\
        --context 128,4096,65536 --plot generated/sweep.svg

Every figure is modelled (perf/predict). Two devices are compared row by row; --set asks what if.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from backends.command import run
from models.numbers import argument, arguments
from models.outputs import PICTURES, output_file
from perf.predict.figures import dump_json
from perf.predict.harness import HARNESSES
from perf.predict.what_if import setting
from perf.sweep.plot import draw
from perf.sweep.points import Sweep
from perf.sweep.text import as_csv, text


def parser() -> argparse.ArgumentParser:
    """All arguments; lists are separated by commas."""
    p = argparse.ArgumentParser(
        prog="python -m perf.sweep", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip

    def names(value: str) -> tuple[str, ...]:
        return tuple(value.split(","))

    p.add_argument("--model", required=True)
    p.add_argument("--devices", type=names, default=("N150", "N300", "T3K", "P150"))
    p.add_argument(
        "--batch", type=arguments("batch_size"), default=(1, 8, 32), help="users of one group"
    )
    p.add_argument(
        "--context", type=arguments("prefill_len"), default=(128, 4096), help="tokens of a prompt"
    )
    p.add_argument("--optimizations", type=names, default=("performance",), help="presets")
    p.add_argument("--data_parallel", type=arguments("data_parallel"), default=(1,))
    p.add_argument("--generated", type=argument("generated"), default=200)
    p.add_argument("--software", help="as for perf.predict")
    p.add_argument("--harness", choices=list(HARNESSES), default="demo")
    p.add_argument("--host", default="usual", help="as for perf.predict")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("--csv", type=output_file(), help="write the points")
    p.add_argument("--plot", type=output_file(*PICTURES), help="draw them (SVG or PNG)")
    return p


def sweep_of(options: argparse.Namespace) -> Sweep:
    """What the arguments ask for."""
    where = (
        setting(name, options.software, options.changes, options.host) for name in options.devices
    )
    return Sweep(
        options.model, tuple(where), options.batch, options.context, options.optimizations,
        options.data_parallel, options.harness, options.generated,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a sweep; bad input is a ValueError of one line."""
    options = parser().parse_args(arguments)
    sweep = sweep_of(options)
    points, room = sweep.points(), sweep.room()
    if all(point.refused for point in points):
        raise ValueError(points[0].refused)
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        options.csv.write_text(as_csv(points), encoding="utf-8")
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        title = f"{options.model}, {options.harness}, software {points[0].software}"
        draw(options.plot, points, title)
    if options.json:
        settings = {"model": options.model, "harness": options.harness, "provenance": "modelled"}
        lists = {"points": [asdict(p) for p in points], "room": [asdict(r) for r in room]}
        print(dump_json(settings | lists))
    else:
        print(text(points, room))
    return 0


if __name__ == "__main__":
    run(main, "perf.sweep")
