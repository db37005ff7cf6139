"""`python -m backends.selftest`: does each backend work here? PASS, FAIL or SKIP with the reason.

A few ops on silicon, on the dry run of every system and on the emulator, each in a process of its
own. The exit code is the number of failures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import backends
from backends.command import run
from backends.device_specs import SPECS
from backends.dry_run import environment
from backends.dry_run.worker import run_module
from backends.mesh import open_mesh

TIMEOUT_S = 300.0
ROWS, WIDTH, COLUMNS = 32, 256, 512


@dataclass(frozen=True)
class Target:
    """One backend as one system; `skip` says why it cannot be tried."""

    backend: str
    device: str
    skip: str | None = None


def targets() -> Iterator[Target]:
    """Everything that could run on this machine."""
    has_device = backends.default_backend() == "silicon"
    yield Target("silicon", "N150", None if has_device else "there is no /dev/tenstorrent")
    reason = environment.unavailable()
    for device in SPECS:
        yield Target("dry-run", device, reason)
    yield Target("emulator", "N150")
    yield Target("emulator", "T3K")


def run_ops(backend: str, device: str) -> dict[str, Any]:
    """Milliseconds of each step; raises where a step fails or a number is wrong."""
    backends.select(backend, device)
    ttnn = backends.ttnn
    times: dict[str, float] = {}
    # silicon is tried on one chip: which product it is does not matter then
    with open_mesh(device, shape=(1, 1) if backend == "silicon" else None) as mesh:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 1, ROWS, WIDTH, generator=generator)
        w = torch.randn(1, 1, WIDTH, COLUMNS, generator=generator)
        began = time.perf_counter()

        def took(step: str) -> None:
            nonlocal began
            ttnn.synchronize_device(mesh)
            now = time.perf_counter()
            times[step], began = round(1000 * (now - began), 2), now

        place = {
            "layout": ttnn.TILE_LAYOUT,
            "device": mesh,
            "mesh_mapper": ttnn.ReplicateTensorToMesh(mesh),
        }
        device_x = ttnn.from_torch(x, dtype=ttnn.bfloat16, **place)
        device_w = ttnn.from_torch(w, dtype=ttnn.bfloat8_b, **place)
        took("write")
        product = ttnn.linear(device_x, device_w)
        took("linear")
        result = ttnn.add(product, product)
        took("add")
        chips = tuple(mesh.shape)[1]
        if chips > 1:
            ttnn.all_gather(
                result, dim=3, cluster_axis=1, num_links=1, topology=ttnn.Topology.Linear
            )
            took("all_gather")
        read = ttnn.to_torch(ttnn.get_device_tensors(result)[0]).float()
        took("read")
    if tuple(read.shape) != (1, 1, ROWS, COLUMNS):
        raise ValueError(f"the result has shape {tuple(read.shape)}")
    if backend != "dry-run":  # mock chips compute nothing
        _check_numbers(read, 2 * (x @ w))
    return times


def _check_numbers(found: torch.Tensor, expected: torch.Tensor) -> None:
    pair = torch.stack([found.flatten(), expected.flatten()])
    correlation = float(torch.corrcoef(pair)[0, 1])
    if not correlation > 0.999:
        raise ValueError(f"2 x W correlates with torch's result by {correlation:.5f} only")


def try_target(target: Target) -> tuple[str, str]:
    """(verdict, detail) of one target, in a process of its own."""
    if target.skip is not None:
        return "SKIP", target.skip
    began = time.perf_counter()
    arguments = ["--run", target.backend, "--device", target.device]
    outcome = run_module("backends.selftest", arguments, timeout_s=TIMEOUT_S)
    if outcome.problem is not None:
        return "FAIL", outcome.problem
    times = json.loads(outcome.output.splitlines()[-1])
    steps = ", ".join(f"{step} {took} ms" for step, took in times.items())
    return "PASS", f"{time.perf_counter() - began:.1f} s ({steps})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per target; returns the number of failures."""
    parser = argparse.ArgumentParser(prog="python -m backends.selftest", description=__doc__)
    parser.add_argument("--run", choices=backends.BACKENDS, help="this one, in this process")
    parser.add_argument("--device", choices=list(SPECS), help="systems to try; default all")
    given = parser.parse_args(arguments)
    if given.run:
        print(json.dumps(run_ops(given.run, given.device or "N150")))
        return 0
    failures = 0
    for target in targets():
        if given.device not in (None, target.device):
            continue
        verdict, detail = try_target(target)
        failures += verdict == "FAIL"
        print(f"{verdict}  {target.backend:9}{target.device:9}{detail}", flush=True)
    return failures


if __name__ == "__main__":
    run(main, "backends.selftest")
