"""Peak memory of this process after ever longer prompts, and its cache: run with a chunk size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from models.checkpoints.open import open_checkpoint
from tests.model.helpers import engine_of, random_pages, random_prompt


def _peak_mib() -> int:
    """Of this process alone: getrusage's peak is at least that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) // 1024


def main() -> None:
    chunk, context = int(sys.argv[1]), 8192
    checkpoint = open_checkpoint("default")
    peaks = {}
    with engine_of(checkpoint, max_seq_len=context, chunk=chunk) as engine:
        for length in sorted({127, chunk - 1, min(2 * chunk, context) - 1, context - 1}):
            prompt = random_prompt(checkpoint.config.vocab_size, length)
            engine.prefill([prompt], slots=[0], page_table=random_pages(engine))
            peaks[length] = _peak_mib()
    sizes = checkpoint.config
    elements = 2 * sizes.num_layers * sizes.num_kv_heads * sizes.head_dim * context
    print(json.dumps({"peaks_mib": peaks, "cache_mib": 2 * elements / 2**20}))  # bfloat16


if __name__ == "__main__":
    main()
