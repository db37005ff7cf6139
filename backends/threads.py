"""How worker threads wait, settled before torch starts any: every package of ours imports it first.

OpenMP's threads, which torch computes with, look again and again for the next piece of work before
they sleep, some 10 ms by default: beside other work on the same cores that takes the time of a
thread with something to do. (The emulator's loops have threads of their own.) A short look loses
nothing on an idle machine and little on a busy one. What the user has set stays; a torch that is
already imported has read its settings.
"""

from __future__ import annotations

import os
from pathlib import Path

LOOKS = 1000  # tens of microseconds: most pieces of a step follow one another within that
_GROUP = Path("/sys/fs/cgroup")
OWN_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

if not any(name in os.environ for name in OWN_CHOICES):
    os.environ["GOMP_SPINCOUNT"] = str(LOOKS)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and its control group's share of time."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    for path, separate in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (_GROUP / path).read_text().split()
            words += (_GROUP / separate).read_text().split() if separate else []
            quota, period = (int(word) for word in words)
        except (OSError, ValueError):  # no such group, or one without a limit ("max")
            continue
        if quota > 0:
            cores = min(cores, max(1, quota // period))
    return cores
