"""python -m lt: without arguments the screen, with a command the same without one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from backends.command import run
from lt.commands import COMMANDS, plan
from models.numbers import argument
from models.outputs import check_file, check_folder
from runtime.settings import Settings


def parser() -> argparse.ArgumentParser:
    """All arguments."""
    p = argparse.ArgumentParser(
        prog="python -m lt",
        description="Runs demos, accuracy tests and predictions; without a command, on a screen.",
        epilog="commands: " + ", ".join(COMMANDS) + ", or 'pytest ...'",
    )
    p.add_argument("command", nargs="?", help="what to run, e.g. table or pareto")
    p.add_argument(
        "--models",
        help="default, names, directories or all (that of HF_MODEL or LLAMA_DIR, else default)",
    )
    p.add_argument("--devices", default="N150", help="N150, N300, ... or all")
    p.add_argument("--out", type=Path, help="file of a table, folder of pareto (generated/lt)")
    p.add_argument(
        "--timeout",
        type=argument("timeout"),
        default=3600,
        metavar="S",
        help="seconds for each job",
    )
    p.add_argument("--search", action="store_true", help="pareto: look for per-layer settings")
    p.add_argument(
        "--tokens", type=argument("tokens"), default=96, help="search: forced tokens of a probe"
    )
    p.add_argument("--dry", action="store_true", help="print the command lines, run nothing")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run; a ValueError says in one line what was wrong."""
    given = parser().parse_args(arguments)
    settings = Settings.from_env()  # what demos would refuse is refused here, once
    given.models = settings.checkpoint or "default" if given.models is None else given.models
    if given.command is not None:
        return _headless(given)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError(
            "the screen needs a terminal: run `python -m lt` in one, or give a command, e.g. "
            "`python -m lt table` (python -m lt --help lists them)"
        )
    from lt.app import LtApp
    from lt.headless import open_queue

    with open_queue(given.timeout) as queue:
        LtApp(queue, models=given.models, devices=given.devices).run()
    return 0


def _headless(given: argparse.Namespace) -> int:
    from lt import headless
    from lt.jobs import FOLDER

    pareto = given.command.startswith("pareto")
    out = given.out or (FOLDER if pareto else FOLDER / "table.md")
    if not given.dry:
        (check_folder if pareto else check_file)(out)
    if given.search:
        if given.command != "pareto":
            raise ValueError("--search belongs to the command pareto")
        from lt.search import run_search

        return run_search(given.models, given.devices, out, tokens=given.tokens)
    plans = plan(given.command, given.models, given.devices)
    if given.dry:
        for one in plans:
            print(one.recorded_command, *(f"{k}={v}" for k, v in one.variables))
        return 0
    if pareto:
        return headless.run_pareto(plans, out, timeout_s=given.timeout)
    return headless.run_table(plans, out, timeout_s=given.timeout)


if __name__ == "__main__":
    run(main, "lt")
