"""What the C library keeps of freed memory, in a process of its own: the settings are for all."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# resident MiB when blocks of 1 MiB are there, freed, and given back; one holds the heap's end
CODE = """
import json
from backends import allocator

def resident():
    line = next(l for l in open("/proc/self/status") if l.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

allocator.keep_all()
blocks = [b"x" * 2**20 for _ in range(200)]
end = b"x" * 2**20
found = [resident()]
del blocks
found.append(resident())
allocator.give_back()
print(json.dumps([*found, resident()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_what_is_freed_stays_until_it_is_given_back() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    full, freed, given_back = json.loads(ended.stdout)
    assert freed > full - 10
    assert given_back < full - 190
