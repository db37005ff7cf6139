"""One check of the dry run as a process of its own: a process is one mocked system, and may crash.

`python -m backends.dry_run` starts it and reads the JSON report it writes; what is run is in
dry_run_passes.py.
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
    parser.add_argument("--options", required=True, help="JSON object of CheckOptions fields")
    parser.add_argument("--report", required=True, type=Path, help="file to write")
    parser.add_argument("--cache_dir", type=Path)
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    options: dict[str, Any] = json.loads(given.options)
    load(options["device"], given.cache_dir)
    backends.select("dry-run", options["device"])
    from runtime.dry_run_passes import CheckOptions, check

    report = check(CheckOptions(**options))
    report["seconds"] = round(time.perf_counter() - started, 2)
    # ru_maxrss counts KiB on Linux
    report["host_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    given.report.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
