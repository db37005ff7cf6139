"""The emulator beside HF transformers on this machine, in one process: who is faster, by how much.

`python -m perf.host_speed [--json]` times prefill of 128 tokens and decode for 1 and 32 users of
the default model. Times are host wall clock and say nothing about Tenstorrent hardware; quote the
ratios (HF time / ours), which survive a noisy machine. `--devices T3K,TG` asks instead what their
meshes cost: our time there divided by that on one chip. `--busy` asks what other work costs: a
decode step beside an endless loop on every core, divided by one without. `--against llama.cpp`
takes turns with that instead (host_llama.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import backends
from backends.command import run
from backends.device_specs import SPECS
from models.numbers import argument
from models.precision import ModelPrecision
from models.registry import load_config
from perf.host_engine import PROMPT_TOKENS, Ours, clock, our_engine, random_prompts
from runtime.settings import Settings

BATCHES = (1, 32)
MESH_ROUNDS = {1: 15, 32: 5}
WARM_UP = {1: 5, 32: 2}  # prompts until lists of steps are made, where they are


@dataclass(frozen=True)
class Times:
    """Seconds: one prefill of all users, the median decode step."""

    prefill: float
    decode: float


class Hf:
    """HF transformers, eager attention, decoding on a dynamic or a static cache."""

    def __init__(self, model: Any, prompts: torch.Tensor, steps: int) -> None:
        self.model, self.prompts, self.steps = model, prompts, steps

    @torch.inference_mode()
    def prefill(self) -> tuple[Any, torch.Tensor]:
        """The filled cache and every user's next token."""
        out = self.model(self.prompts, use_cache=True, logits_to_keep=1)
        return out.past_key_values, out.logits[:, -1:].argmax(-1)

    def decode_dynamic(self) -> list[float]:
        """Seconds of each step on the cache that grows by concatenation."""
        return self._decode(*self.prefill())

    @torch.inference_mode()
    def decode_static(self) -> list[float]:
        """Seconds of each step on a cache of fixed size."""
        from transformers import StaticCache

        length = PROMPT_TOKENS + self.steps
        cache = StaticCache(config=self.model.config, max_cache_len=length)
        out = self.model(self.prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return self._decode(cache, out.logits[:, -1:].argmax(-1))

    @torch.inference_mode()
    def _decode(self, cache: Any, token: torch.Tensor) -> list[float]:
        times = []
        for _ in range(self.steps):
            start = time.perf_counter()
            out = self.model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            times.append(time.perf_counter() - start)
        return times


def compare(batch: int, models: dict[str, Any], optimizations: str, steps: int) -> dict[str, Times]:
    """Times of every contestant for one batch size, runs interleaved so that noise hits all."""
    prompts = random_prompts(batch, next(iter(models.values())).config.vocab_size)
    rounds = 3 if batch == 1 else 1
    prefills: dict[str, list[float]] = {}
    decodes: dict[str, list[float]] = {}
    with our_engine(batch, optimizations) as engine:
        ours = Ours(engine, prompts, steps)
        ours.prefill()  # chooses kernels
        for _ in range(rounds):
            prefills.setdefault("ours", []).append(clock(ours.prefill))
            decodes.setdefault("ours", []).append(statistics.median(ours.decode()))
            for name, model in models.items():
                hf = Hf(model, prompts, steps)
                prefills.setdefault(name, []).append(clock(hf.prefill))
                runs = (hf.decode_dynamic, hf.decode_static)
                decodes.setdefault(name, []).append(min(statistics.median(run()) for run in runs))
    return {
        name: Times(statistics.median(prefills[name]), statistics.median(decodes[name]))
        for name in prefills
    }


def measure_meshes(devices: Sequence[str], optimizations: str, steps: int) -> dict[str, float]:
    """Median times of each device by name, and their ratios to those of one chip (N150).

    Devices take turns at every step and every prompt: what else a machine does hits all of them.
    """
    found: dict[str, float] = {"torch_threads": torch.get_num_threads()}
    for batch in BATCHES:
        with contextlib.ExitStack() as open_engines:
            ours = {}
            for device in dict.fromkeys(("N150", *devices)):
                engine = open_engines.enter_context(our_engine(batch, optimizations, device))
                ours[device] = Ours(engine, random_prompts(batch, engine.vocab_size), steps)
                for _ in range(WARM_UP[batch]):
                    ours[device].prefill()
            decodes = zip(*(each.decode() for each in ours.values()), strict=True)
            decode = zip(*decodes, strict=True)
            prefills = [
                [clock(each.prefill) for each in ours.values()] for _ in range(MESH_ROUNDS[batch])
            ]
            prefill = zip(*prefills, strict=True)
            for phase, times in (("prefill", prefill), ("decode", decode)):
                medians = dict(zip(ours, map(statistics.median, times), strict=True))
                for device, seconds in medians.items():
                    found[f"{device}_{phase}_b{batch}_ms"] = round(seconds * 1e3, 2)
                    ratio = seconds / medians["N150"]
                    found[f"{device}_{phase}_b{batch}_ratio"] = round(ratio, 3)
    return found


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Other work: processes that never sleep, as many as `count`."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure_busy(optimizations: str, steps: int) -> dict[str, float]:
    """Decode steps of one user alone and beside a loop on each core; a fair share halves speed."""
    cores = len(os.sched_getaffinity(0))
    with our_engine(1, optimizations) as engine:
        ours = Ours(engine, random_prompts(1, engine.vocab_size), steps)
        ours.prefill()
        before = list(ours.decode())
        with busy_loops(cores):
            beside = statistics.median(ours.decode())
        alone = statistics.median([*before, *ours.decode()])
    return {
        "torch_threads": torch.get_num_threads(),
        "busy_loops": cores,
        "decode_b1_ms": round(alone * 1e3, 2),
        "decode_b1_busy_ms": round(beside * 1e3, 2),
        "busy_ratio": round(beside / alone, 2),
        "busy_over_fair_share": round(beside / alone / 2, 2),
    }


def hf_models(with_bfloat16: bool) -> dict[str, Any]:
    """The reference of the default model in float32 (and bfloat16)."""
    from models.checkpoints.reference import hf_reference

    models = {"hf_float32": hf_reference("default").eval()}
    if with_bfloat16:
        models["hf_bfloat16"] = hf_reference("default", dtype=torch.bfloat16).eval()
    for model in models.values():
        model.config._attn_implementation = "eager"
    return models


def measure(optimizations: str, steps: int, with_bfloat16: bool) -> dict[str, float]:
    """All figures by name; ratios are HF time / our time."""
    models = hf_models(with_bfloat16)
    found: dict[str, float] = {"torch_threads": torch.get_num_threads()}
    for batch in BATCHES:
        # in bfloat16 HF needs a minute for 32 prompts on a processor without bfloat16 units
        contestants = {k: v for k, v in models.items() if batch == 1 or k == "hf_float32"}
        times = compare(batch, contestants, optimizations, steps)
        for name, value in times.items():
            found[f"{name}_prefill_b{batch}_ms"] = round(value.prefill * 1e3, 2)
            found[f"{name}_decode_b{batch}_ms"] = round(value.decode * 1e3, 2)
        for phase in ("prefill", "decode"):
            for name in contestants:
                ratio = getattr(times[name], phase) / getattr(times["ours"], phase)
                suffix = "" if name == "hf_float32" else "_bfloat16"
                found[f"{phase}_b{batch}_ratio{suffix}"] = round(ratio, 3)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.host_speed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--steps", type=argument("steps"), default=12, help="steps timed (default 12)"
    )
    parser.add_argument("--optimizations", default="performance", help="precision of our engine")
    parser.add_argument("--devices", help="meshes to compare with one chip instead: T3K,TG")
    parser.add_argument("--against", choices=["llama.cpp"], help="take turns with this instead")
    parser.add_argument("--cases", help="with --against: some of b1,b1_2048,b1_8000,b32, not all")
    parser.add_argument("--busy", action="store_true", help="measure beside busy loops instead")
    parser.add_argument("--bfloat16", action="store_true", help="time HF in bfloat16 too (batch 1)")
    args = parser.parse_args()
    backends.select("emulator")
    Settings.from_env()
    ModelPrecision.parse(args.optimizations, load_config("default"))
    found: dict[str, Any]
    if args.against:
        from perf.host_llama import CASES, measure_llama

        cases = args.cases.split(",") if args.cases else list(CASES)
        unknown = [case for case in cases if case not in CASES]
        if unknown:
            parser.error(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
        found = measure_llama(args.optimizations, args.steps, cases)
    elif args.cases:
        parser.error("--cases needs --against llama.cpp")
    elif args.busy:
        found = measure_busy(args.optimizations, args.steps)
    elif args.devices is not None:
        devices = args.devices.split(",")
        unknown = [device for device in devices if device not in SPECS]
        if unknown:
            parser.error(f"unknown device {unknown[0]!r}: choose from {', '.join(SPECS)}")
        found = measure_meshes(devices, args.optimizations, args.steps)
    else:
        found = measure(args.optimizations, args.steps, args.bfloat16)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28s} {value:10.2f}" if isinstance(value, int | float) else f"{name}: {value}")


if __name__ == "__main__":
    run(main, "perf.host_speed")
