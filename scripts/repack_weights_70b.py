"""Repack Meta's Llama-3.1-70B: repack_weights_70b.py <in_dir> <out_dir> [chunk_size].

The work is done in models/checkpoints/repack.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.command import run  # noqa: E402
from models.checkpoints.repack import main  # noqa: E402  (the path above comes first)

if __name__ == "__main__":
    run(
        lambda: main(
            "Join the shards of Meta's Llama-3.1-70B into files of a few layers.", "3.1-70B"
        ),
        "repack_weights_70b",
    )
