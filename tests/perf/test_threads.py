"""Threads: beside other work they take their share of the cores, and a fork has its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.emulator.loops import native
from backends.threads import usable_cores
from perf.host_speed import busy_loops

ROOT = Path(__file__).resolve().parents[2]
MOST_OVER_FAIR_SHARE = 2.5


@pytest.mark.full
def test_busy_loops_on_every_core_cost_little_more_than_their_share() -> None:
    found = json.loads(_told("-m", "perf.host_speed", "--busy", "--json"))
    assert found["busy_over_fair_share"] <= MOST_OVER_FAIR_SHARE, found


STEPS = """
import time
import torch
from backends.emulator.loops.call import call

x = torch.randn(1 << 20).bfloat16()
out = torch.empty_like(x)
torch.set_num_threads(max(2, torch.get_num_threads()))
start = time.perf_counter()
for _ in range(300):
    assert call("cut_bits", x=x, out=out, count=x.numel(), mask=0xFF80)
print((time.perf_counter() - start) / 300)
"""


@pytest.mark.skipif(native.library() is None, reason="no C compiler here")
def test_a_step_does_not_wait_for_threads_that_other_work_keeps_away() -> None:
    """Each of these took a turn of the scheduler, some milliseconds, when all had to arrive."""
    with busy_loops(usable_cores()):
        seconds = float(_told("-c", STEPS))
    assert seconds < 2e-3


FORK = """
import os, sys, torch
from backends.emulator.loops.call import call

torch.set_num_threads(3)
x = torch.ones(1 << 20).bfloat16()
out = torch.zeros_like(x)

def new_threads():  # torch's own do not outlive a fork: nothing here may ask for them
    before = len(os.listdir("/proc/self/task"))
    assert call("cut_bits", x=x, out=out, count=x.numel(), mask=0xFFFF)
    return len(os.listdir("/proc/self/task")) - before

assert (new_threads(), new_threads()) == (2, 0)
child = os.fork()
if not child:
    os._exit((new_threads(), new_threads()) != (2, 0))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(native.library() is None, reason="no C compiler here")
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads where Linux lists them")
def test_a_child_of_fork_gets_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, check=True, timeout=60)


def _told(*command: str) -> str:
    """What Python prints, where nobody has said how threads wait."""
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in own}
    told = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=True,
        timeout=300,
    )  # fmt: skip
    return told.stdout
