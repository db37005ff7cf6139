"""Checks of the dry run in a process of their own: a process is one mocked system, and may crash.

`python -m runtime.dry_run` starts it and reads the JSON lines it writes, one for each check; what
is run is in passes.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import backends
from backends.dry_run import load


def main(arguments: list[str] | None = None) -> None:
    """Select the mocked system, then import the model code that is built on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checks", required=True, help="JSON list of CheckOptions of one device")
    parser.add_argument("--reports", required=True, type=Path, help="file to append to")
    parser.add_argument("--cache_dir", type=Path)
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    checks: list[dict[str, Any]] = json.loads(given.checks)
    (device,) = {options["device"] for options in checks}
    load(device, given.cache_dir)
    backends.select("dry-run", device)
    from runtime.dry_run.passes import CheckOptions, check

    for options in checks:
        report = check(CheckOptions(**options))
        report["seconds"] = round(time.perf_counter() - started, 2)
        # ru_maxrss counts KiB on Linux
        report["host_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        with given.reports.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")
        started = time.perf_counter()


if __name__ == "__main__":
    main()
