"""Token accuracy of precision settings by teacher forcing on the emulator, for tables and tests.

    python -m perf.accuracy --optimizations performance     prints one setting's shares
    python -m perf.accuracy --record                        measures all that targets.json lists

Digits repeat on one kind of processor (`arithmetic`); on another a few near-ties fall otherwise.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from backends.command import run
from models.numbers import argument
from perf import targets

EXACT = (
    "precision_cfg = {ff1_3: bf16, ff2: bf16, wqkv: bf16, wo: bf16, kv_cache: bf16, "
    "activation: bf16}, fidelity_cfg = {li_ff1_3: hifi4, li_ff2: hifi4, li_qkv_decode: hifi4, "
    "li_o_decode: hifi4, sdpa_decode: hifi4, li_qkv_prefill: hifi4, li_o_prefill: hifi4, "
    "sdpa_prefill: hifi4}"
)

_IDENTITY = ("model", "device", "optimizations")


def settings() -> list[str]:
    """The presets, bfloat16 throughout, and the settings that the published tables compare."""
    from models.precision import compared_settings

    return ["performance", "accuracy", EXACT, *compared_settings()]


def measure(
    optimizations: str, *, model: str = "default", device: str = "N150", tokens: int | None = None
) -> dict[str, Any]:
    """An entry of targets.json; `tokens` cuts the forced text short."""
    import backends

    backends.select("emulator")
    from backends.emulator.numerics.kernels import arithmetic
    from models.kv_cache import CacheConfig
    from runtime.blueprint import LoadOptions
    from runtime.loading import load_engines
    from runtime.settings import Settings
    from runtime.teacher_forcing import find_reference, force

    options = LoadOptions(model, device, optimizations=optimizations, cache=CacheConfig(32, 64))
    with load_engines(options, Settings.from_env()) as loaded:
        reference = find_reference(loaded.checkpoint)
        (found,) = force(loaded.engines[0], reference, num_tokens=tokens)
        name = loaded.config.name
    where = () if (model, device) == ("default", "N150") else ("--model", model, "--device", device)
    typed = ("python", "-m", "perf.accuracy", *where, "--optimizations", optimizations)
    return {
        "model": name,
        "device": device,
        "optimizations": optimizations,
        "top1": round(found.top1, 2),
        "top5": round(found.top5, 2),
        "tokens": found.num_tokens,
        "arithmetic": arithmetic(),
        "command": shlex.join(typed),
    }


def record(entry: dict[str, Any]) -> None:
    """Put an entry in the place of the one it renews, or behind the others."""
    kept = targets.load()
    entries = {tuple(old[key] for key in _IDENTITY): old for old in kept["accuracy"]}
    entries[tuple(entry[key] for key in _IDENTITY)] = entry
    targets.save(kept | {"accuracy": list(entries.values())})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print shares, and write them where that was asked for."""
    p = argparse.ArgumentParser(
        prog="python -m perf.accuracy", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--model", default="default", help="name, directory or GGUF file")
    p.add_argument("--device", default="N150", help="product to emulate")
    p.add_argument("--optimizations", action="append", help="preset or precision text, repeatable")
    p.add_argument("--tokens", type=argument("tokens"), help="force fewer than the reference has")
    p.add_argument("--record", action="store_true", help="write perf/targets.json")
    given = p.parse_args(arguments)
    if given.record and given.tokens:
        p.error("--record needs the whole text: leave --tokens out")
    for one in given.optimizations or settings():
        found = measure(one, model=given.model, device=given.device, tokens=given.tokens)
        print(f"top-1 {found['top1']:.2f} %, top-5 {found['top5']:.2f} %: {one}", flush=True)
        if given.record:
            record(found)
    return 0


if __name__ == "__main__":
    run(main, "perf.accuracy")
