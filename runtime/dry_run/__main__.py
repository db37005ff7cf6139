"""Check a model on mock chips: `python -m runtime.dry_run --model NAME --device DEVICE`.

Starts check.py as a process, so that a crash of the wheel is a reported failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from backends.command import run
from backends.device_specs import SPECS
from backends.dry_run import environment
from models.fields import is_there
from models.numbers import argument
from models.outputs import output_folder
from models.precision import ModelPrecision
from models.registry import load_config
from runtime.dry_run import report
from runtime.dry_run.worker import TIMEOUT_S, run_checks

EXIT_CODES = {"pass": 0, "fail": 1, "crash": 1, "timeout": 1, "refused": 2}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.dry_run",
        description="Run a model of full size through the real TT-NN on mock chips.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME|DIR", help="name in model_params, or a directory")
    add("--device", required=True, choices=list(SPECS))
    add("--batch_size", type=argument("batch_size"), metavar="N", help="default: 1, then 32")
    add(
        "--max_seq_len",
        type=argument("max_seq_len"),
        metavar="N",
        help="default: the longest that one user can have",
    )
    add("--layers", type=argument("num_layers"), metavar="N", help="default: all")
    add("--phase", choices=("prefill", "decode", "both"), default="both")
    add("--optimizations", default="performance", help="preset or precision settings")
    add("--data_parallel", type=argument("data_parallel"), default=1, metavar="N")
    add(
        "--block_size",
        type=argument("block_size"),
        default=32,
        metavar="N",
        help="page of the cache",
    )
    add(
        "--num_blocks",
        type=argument("max_num_blocks"),
        metavar="N",
        help="pages of the cache; default: as many as fit",
    )
    add(
        "--images",
        type=argument("images"),
        default=0,
        metavar="N",
        help="most images of a prompt; default: text",
    )
    help = "collectives over rings, or not; default: rings where the product closes them"
    add("--ring", action=argparse.BooleanOptionalAction, help=help)
    add("--line_reduce", action="store_true", help="reduce-scatters over lines, as with LINE_RS=1")
    add("--json", action="store_true", help="print the report as JSON")
    add("--cache_dir", type=output_folder, help=f"default: {environment.default_cache()}")
    add("--timeout", type=argument("timeout"), default=TIMEOUT_S, metavar="SECONDS")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 passed, 1 failed, 2 refused (it cannot fit)."""
    given = vars(_parser().parse_args(arguments))
    reason = environment.unavailable()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    as_json, cache_dir, timeout_s = (given.pop(name) for name in ("json", "cache_dir", "timeout"))
    cache_dir = cache_dir and cache_dir.resolve()
    for name in ("model", "optimizations"):  # the process that checks runs elsewhere
        path = Path(given[name])
        if is_there(path / "config.json") or path.suffix in (".json", ".gguf"):
            given[name] = str(path.resolve())
    config = load_config(given["model"], vision=given["images"] > 0)
    ModelPrecision.parse(given["optimizations"], config)  # what is wrong is said at once
    batch = given.pop("batch_size")
    options = given | {"batch_sizes": [batch] if batch else [1, 32]}
    (found,) = run_checks([options], cache_dir=cache_dir, timeout_s=timeout_s)
    print(json.dumps(found, indent=2) if as_json else report.render(found))
    return EXIT_CODES[found["status"]]


if __name__ == "__main__":
    run(main, "runtime.dry_run")
