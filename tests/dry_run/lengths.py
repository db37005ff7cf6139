"""Serves prompts of some lengths, and steps after each, on mock chips: what was compiled for them.

Arguments: the answer's file, a device, a model, its users, [length, cached tokens] of prompts, and
the tokens up to which a warm-up compiles for lengths, if any.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import backends

backends.select("dry-run", sys.argv[2])

import torch  # noqa: E402

from models.kv_cache import CacheConfig  # noqa: E402
from runtime.blueprint import LoadOptions  # noqa: E402
from runtime.loading import load_engines  # noqa: E402
from runtime.settings import Settings  # noqa: E402
from serving.engines import warm_up  # noqa: E402

BLOCK, BLOCKS = 32, 193


def main(answer: str, device: str, model: str, users: str, prompts: str, warm: str) -> None:
    options = LoadOptions(
        model=model,
        device=device,
        weights="placeholder",
        max_batch_size=int(users),
        max_seq_len=6100,  # its bucket's pages are no whole rows of a table
        cache=CacheConfig(BLOCK, BLOCKS),
        layers=range(1),
    )
    with load_engines(options, Settings(backend="dry-run", device=device)) as loaded:
        if int(warm):
            warm_up(loaded.engines[0], warm_prompts=int(warm))
        found = [served(loaded.engines[0], *prompt) for prompt in json.loads(prompts)]
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


def served(engine: Any, length: int, cached: int) -> tuple[int, int | None]:
    """Programs that a prompt's prefill compiled, and which recording its steps ended with."""
    mesh, users = engine.model.mesh, engine.max_batch_size
    pages = torch.arange(BLOCKS - 2, dtype=torch.int32).repeat(users, 1)
    before = mesh.num_program_cache_entries()
    engine.prefill([[1] * length], slots=[0], page_table=pages, start_positions=[cached])
    compiled = mesh.num_program_cache_entries() - before
    for step in range(3):
        positions = torch.full((users,), length + step, dtype=torch.int32)
        engine.decode(torch.ones(users, dtype=torch.int32), positions, page_table=pages)
    (trace,) = engine.traces.values()
    return compiled, trace.id


if __name__ == "__main__":
    main(*sys.argv[1:])
