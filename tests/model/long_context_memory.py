"""Peak memory of this process after ever longer prompts, and its cache: run with a chunk size."""

from __future__ import annotations

import json
import resource
import sys

from models.checkpoints.open import open_checkpoint
from tests.model.helpers import engine_of, random_pages, random_prompt


def main() -> None:
    chunk, context = int(sys.argv[1]), 8192
    checkpoint = open_checkpoint("default")
    peaks = {}
    with engine_of(checkpoint, max_seq_len=context, chunk=chunk) as engine:
        for length in (127, chunk - 1, 2 * chunk - 1, context - 1):
            prompt = random_prompt(checkpoint.config.vocab_size, length)
            engine.prefill([prompt], slots=[0], page_table=random_pages(engine))
            # ru_maxrss counts KiB on Linux
            peaks[length] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sizes = checkpoint.config
    elements = 2 * sizes.num_layers * sizes.num_kv_heads * sizes.head_dim * context
    print(json.dumps({"peaks_mib": peaks, "cache_mib": 2 * elements / 2**20}))  # bfloat16


if __name__ == "__main__":
    main()
