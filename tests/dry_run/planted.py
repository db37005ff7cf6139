"""Plants one wrong decision at a time in a real model and writes what the dry run said of it.

A process of its own: `python -m tests.dry_run.planted FILE`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backends

backends.select("dry-run", "N150")

from backends import op_record, ttnn  # noqa: E402
from runtime import blueprint  # noqa: E402
from runtime.dry_run import passes  # noqa: E402

MODEL = "Llama-3.2-1B"
Change = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


def planted(
    name: str, scope: str, change: Change, space: Any = ttnn, phase: str = "both"
) -> dict[str, Any]:
    """Check the model with the arguments of ttnn.<name> changed inside `scope`."""
    original = getattr(space, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        if scope in op_record.current_scope():
            args, kwargs = change(args, kwargs)
        return original(*args, **kwargs)

    setattr(space, name, changed)
    try:
        return check(phase=phase)
    finally:
        setattr(space, name, original)


def check(**options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"batch_sizes": (1,), "max_seq_len": 1024, "layers": 2} | options
    return passes.check(passes.CheckOptions(MODEL, "N150", **given))


def unsharded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The input of a DRAM-sharded matmul left interleaved."""
    return (ttnn.to_memory_config(args[0], ttnn.DRAM_MEMORY_CONFIG), *args[1:]), kwargs


def uint32_pages(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A page table of the type that token ids have."""
    pages = kwargs["page_table"]
    return args, kwargs | {
        "page_table": ttnn.empty(
            list(pages.shape),
            ttnn.uint32,
            ttnn.ROW_MAJOR_LAYOUT,
            pages.device(),
            ttnn.DRAM_MEMORY_CONFIG,
        )
    }


def wide_chunks(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attention blocks too large for the L1 of a core."""
    plan = ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=(8, 8),
        exp_approx_mode=False,
        q_chunk_size=1024,
        k_chunk_size=1024,
    )
    return args, kwargs | {"program_config": plan}


def packed_rotation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Queries in block-float, which the rotation does not take."""
    return (ttnn.typecast(args[0], dtype=ttnn.bfloat8_b), *args[1:]), kwargs


def full_dram() -> dict[str, Any]:
    """Caches of two layers where one fits, with the check that refuses it before switched off."""
    original = blueprint.check_fits
    blueprint.check_fits = lambda *_: None
    try:
        return check(num_blocks=240_000)  # 3.9 GiB of keys, as much of values, and 12 GiB there are
    finally:
        blueprint.check_fits = original


def main() -> None:
    transformer, experimental = ttnn.transformer, ttnn.experimental
    found = {
        "none": check(),
        "unsharded input": planted("linear", "layers.1.mlp", unsharded, phase="decode"),
        "uint32 page table": planted(
            "paged_fused_update_cache", "layers.1", uint32_pages, experimental
        ),
        "L1 overflow": planted(
            "scaled_dot_product_attention", "layers.1", wide_chunks, transformer
        ),
        "wrong dtype": planted("rotary_embedding_llama", "layers.1", packed_rotation, experimental),
        "DRAM full": full_dram(),
    }
    found["compiler"] = "torch._dynamo" in sys.modules
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
