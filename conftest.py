"""Puts the repository root on the import path, wherever pytest is called from."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import backends  # noqa: E402, F401  (settles how threads wait, before a test imports torch)
