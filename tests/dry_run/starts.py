"""Counts programs that prompts with a cached prefix need, one after the other, on mock chips."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import backends

backends.select("dry-run", "N300")

import torch  # noqa: E402

from models.kv_cache import CacheConfig  # noqa: E402
from runtime.blueprint import LoadOptions  # noqa: E402
from runtime.loading import load_engines  # noqa: E402
from runtime.settings import Settings  # noqa: E402

# length, cached tokens: the first brings the programs of its bucket
PROMPTS = [(700, 416), (600, 256), (1000, 672), (2000, 1696), (512, 160), (3000, 2720)]


def main() -> None:
    options = LoadOptions(
        model="Llama-3.2-1B",
        device="N300",
        weights="placeholder",
        max_seq_len=3100,  # a bucket whose pages are no whole rows of a table
        cache=CacheConfig(32, 100),
        layers=range(1),
    )
    with load_engines(options, Settings(backend="dry-run", device="N300")) as loaded:
        engine, mesh = loaded.engines[0], loaded.engines[0].model.mesh
        pages, programs = torch.arange(97, dtype=torch.int32)[None], []
        for length, cached in PROMPTS:
            before = mesh.num_program_cache_entries()
            engine.prefill([[1] * length], slots=[0], page_table=pages, start_positions=[cached])
            programs.append(mesh.num_program_cache_entries() - before)
    Path(sys.argv[1]).write_text(json.dumps(programs), encoding="utf-8")


if __name__ == "__main__":
    main()
