"""The op list of every path of a two-layer model, on mock chips or on the emulator.

As a process: `python -m tests.dry_run.oplist FILE BACKEND CASES`, CASES a JSON list of one device.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import backends

Line = dict[str, Any]


def main() -> None:
    answer, backend, text = sys.argv[1:]
    cases = json.loads(text)
    backends.select(backend, cases[0]["device"])
    found = [dict(op_lists(**case)) for case in cases]
    Path(answer).write_text(json.dumps(found))


def op_lists(
    model: str, device: str, batch: int, optimizations: str = "performance", ring: bool = False,
    images: int = 0,
) -> Iterator[tuple[str, list[Line]]]:  # fmt: skip
    """(path, ops) of prefill and decode of `batch` users."""
    from models.kv_cache import CacheConfig
    from runtime.blueprint import LoadOptions
    from runtime.loading import load_engines
    from runtime.sampling import DeviceSampling
    from runtime.settings import Settings

    options = LoadOptions(
        model=model,
        device=device,
        weights="placeholder",
        optimizations=optimizations,
        max_batch_size=batch,
        max_seq_len=2048,
        cache=CacheConfig(32, 64 * batch),
        layers=range(3, 4) if images else range(2),  # the fourth has one that looks in front
        images=images,
        max_prefill_chunk=1024,
        enable_trace=False,
        ring=ring,
    )
    pages = torch.arange(64 * batch, dtype=torch.int32).reshape(batch, 64)
    ones = torch.ones(batch, dtype=torch.int32)
    sampling = DeviceSampling(
        torch.ones(32), torch.full((32,), 4).int(), torch.ones(32), torch.arange(32).int()
    )
    settings = Settings(backend="dry-run", device=device, emulator_device="meta")
    with load_engines(options, settings) as loaded:
        engine = loaded.engines[0]

        def prefill(lengths: list[int], starts: list[int] | None = None) -> Callable[[], Any]:
            prompts = [[1] * length for length in lengths]
            slots = list(range(len(prompts)))
            return lambda: engine.prefill(
                prompts, slots=slots, page_table=pages, start_positions=starts
            )

        yield "prefill 128", recorded(prefill([100]))
        yield "prefill 1024", recorded(prefill([1000]))
        yield "prefill 1536 in chunks", recorded(prefill([1500]))
        yield "prefill after 160 cached", recorded(prefill([300], [160]))
        if batch > 1:
            yield "prefill together", recorded(prefill([100] * batch))
        yield "decode", recorded(lambda: engine.decode(ones, ones * 5, page_table=pages))
        yield (
            "sample",
            recorded(lambda: engine.decode(ones, ones * 6, page_table=pages, sampling=sampling)),
        )
        yield "prefill a second batch", recorded(prefill([1000]))
        yield (
            "decode a second batch",
            recorded(lambda: engine.decode(ones, ones * 7, page_table=pages)),
        )
        for count in range(1, images + 1):
            yield from looking(engine, count, pages)


def looking(engine: Any, images: int, pages: torch.Tensor) -> Iterator[tuple[str, list[Line]]]:
    """A prompt with `images` images of two tiles, apart from each other, and a step after it."""
    from runtime.images import blank_image

    prompt = [1, 2] * 50
    for number in range(images):
        prompt[2 * number] = engine.vision.image_token
    engine.attach(0, prompt, [blank_image(engine.vision, 2)] * images)
    yield (
        f"prefill with {images} images",
        recorded(lambda: engine.prefill([prompt], slots=[0], page_table=pages)),
    )
    ones = torch.ones(len(pages), dtype=torch.int32)
    yield (
        f"decode with {images} images",
        recorded(lambda: engine.decode(ones, ones * 7, page_table=pages)),
    )
    engine.detach(0)


def recorded(run: Callable[[], Any]) -> list[Line]:
    """What each op was, where in the model, and the placement of what went in and came out."""
    from backends.op_record import record_ops

    with record_ops() as records:
        run()
    return [
        {
            "op": record.name,
            "scope": record.scope,
            "inputs": [asdict(spec) for spec in record.inputs],
            "outputs": [asdict(spec) for spec in record.outputs],
        }
        for record in records
    ]


if __name__ == "__main__":
    main()
