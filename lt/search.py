"""Looks for per-layer settings that beat the uniform presets: pareto --search.

From bfp8 everywhere, each (layer group, tensor group) is made coarser alone, and its harm per
microsecond saved is noted. Harm is what it adds to the mean square by which log-probabilities of
HF's tokens differ from HF's own: few forced tokens show that finely, and harms of several moves add
up. The least harmful are then taken together, and full runs judge the candidates.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lt import pareto
from lt.commands import config_name
from lt.pareto import Point
from models.config import ModelConfig
from models.precision import (
    Fidelity,
    Group,
    LayerPrecision,
    ModelPrecision,
    OpGroup,
    Precision,
    Setting,
    TensorGroup,
)
from models.registry import load_config

LAYER_GROUPS = 5
BASE = (
    "precision_cfg = {ff1_3: bfp8, ff2: bfp8, wqkv: bfp8, wo: bfp8, kv_cache: bfp8, "
    "activation: mixed}, fidelity_cfg = {li_ff1_3: hifi2fp16, li_ff2: hifi2fp16, "
    "li_qkv_decode: hifi2, li_o_decode: hifi2}"
)
LOFI, BFP4 = Fidelity.LOFI, Precision.BFP4
COARSER: dict[str, dict[Group, Setting]] = {
    "ff1_3": {TensorGroup.FF1_FF3: BFP4, OpGroup.LI_FF1_FF3: LOFI},
    "ff2": {TensorGroup.FF2: BFP4, OpGroup.LI_FF2: LOFI},
    "wqkv": {TensorGroup.WQKV: BFP4, OpGroup.LI_QKV_DECODE: LOFI},
    "wo": {TensorGroup.WO: BFP4, OpGroup.LI_O_DECODE: LOFI},
}


@dataclass(frozen=True)
class Move:
    """One tensor group of some layers made coarser, and what that costs and saves."""

    group: str
    layers: range
    saved_us: float = 0.0  # of a decode step
    harm: float = 0.0  # square nats

    @property
    def harm_per_us(self) -> float:
        return self.harm / self.saved_us

    def __str__(self) -> str:
        return (
            f"{self.group:<6} layers {self.layers.start:>3}-{self.layers.stop - 1:<3} "
            f"saves {self.saved_us:6.1f} us, harms {self.harm:+.4f} square "
            f"nats, {1000 * self.harm_per_us:+.2f} per ms saved"
        )


def layer_groups(num_layers: int) -> list[range]:
    """Layers cut into ranges of nearly equal length."""
    count = min(LAYER_GROUPS, num_layers)
    ends = [round(i * num_layers / count) for i in range(count + 1)]
    return [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]


def apply(base: ModelPrecision, moves: Sequence[Move], name: str = "mixture") -> ModelPrecision:
    """The base with some groups made coarser."""
    layers: list[LayerPrecision] = list(base.layers)
    for move in moves:
        for index in move.layers:
            layers[index] = layers[index].changed(COARSER[move.group])
    return ModelPrecision(name, tuple(layers))


def save_decoder_file(
    folder: Path, precision: ModelPrecision, config: ModelConfig, device: str
) -> Path:
    """Write a decoder file for `--decoder_config_file` on top of performance.

    Its name holds a hash of its content, so that what was kept of another is never taken for it.
    """
    decoders = precision.decoder_config(ModelPrecision.preset("performance", config))["decoders"]
    lines = ",\n".join(f'    "{i}": {json.dumps(entry)}' for i, entry in decoders.items())
    text = f'{{\n  "decoders": {{\n{lines}\n  }}\n}}\n'
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{config.name}_{device}_{digest}.json"
    path.write_text(text, encoding="utf-8")
    return path


class Bench:
    """Accuracy on the emulator and modelled speed of any setting of one model and device."""

    def __init__(self, model: str, device: str) -> None:
        self.model, self.device = model, device
        self.config = load_config(model)

    def speed(self, optimizations: str) -> Any:
        """Modelled figures of one user."""
        from backends.device_specs import SPECS
        from perf.cost.software import OWN
        from perf.predict.figures import predict, workload_for

        spec = SPECS[self.device]
        job = workload_for(self.model, spec, software=OWN, optimizations=optimizations)
        return predict(job, software=OWN)

    def forced(self, optimizations: str, tokens: int | None) -> tuple[Any, float]:
        """Token accuracy, and the mean square of log-probabilities' distance from HF's."""
        from models.kv_cache import CacheConfig
        from runtime.blueprint import LoadOptions
        from runtime.loading import load_engines
        from runtime.settings import Settings
        from runtime.teacher_forcing import find_reference, force

        options = LoadOptions(
            self.model, self.device, optimizations=optimizations, cache=CacheConfig(32, 64)
        )
        with load_engines(options, Settings.from_env()) as loaded:
            reference = find_reference(loaded.checkpoint)
            (found,) = force(loaded.engines[0], reference, num_tokens=tokens)
        return found, found.distance(reference.log_probs) ** 2


def probe(bench: Bench, base: ModelPrecision, folder: Path, tokens: int) -> list[Move]:
    """Every single move with its harm and its saving, least harm per microsecond first."""
    base_us = 1000 * bench.speed(BASE).decode.ms
    _, base_harm = bench.forced(BASE, tokens)
    moves = [Move(group, layers) for group in COARSER for layers in layer_groups(len(base.layers))]
    measured = []
    for move in tqdm(moves, desc="probes", disable=None):
        path = save_decoder_file(folder, apply(base, [move]), bench.config, bench.device)
        saved_us = base_us - 1000 * bench.speed(str(path)).decode.ms
        if saved_us > 0:
            _, harm = bench.forced(str(path), tokens)
            measured.append(Move(move.group, move.layers, saved_us, harm - base_harm))
        path.unlink()
    return sorted(measured, key=lambda move: move.harm_per_us)


def judge(bench: Bench, setting: str) -> Point:
    """A setting's figures from a full run."""
    figures, (found, _) = bench.speed(setting), bench.forced(setting, None)
    return Point(
        setting, figures.tokens_per_s_per_user, found.top1, found.top5, "modelled", figures.ttft_ms
    )


def run_search(models: str, device: str, out: Path, *, tokens: int) -> int:
    """Search, print what was found, write the best decoder files and the plot."""
    import backends

    backends.select("emulator")
    from runtime.blueprint import LoadOptions, precision_of

    bench = Bench(models, device)
    base = precision_of(LoadOptions(optimizations=BASE), bench.config)
    scratch = out / "search"
    moves = probe(bench, base, scratch, tokens)
    print("\n".join(map(str, moves)))
    presets = [judge(bench, name) for name in ("performance", "accuracy")]
    points = [*presets, judge(bench, BASE)]
    wanted_us = 1e6 / points[2].speed - 1e6 / presets[0].speed  # to be as fast as performance
    for count in cuts(moves, wanted_us):
        path = save_decoder_file(out, apply(base, moves[:count]), bench.config, device)
        points.append(judge(bench, str(path)))
        found = points[-1]
        print(f"the first {count} moves: {found.top1:.2f} % top-1, {found.speed:.1f} t/s/u")
    from lt.headless import show

    show(points, out, f"{config_name(models)}-search", device)
    winners = [p for p in points[3:] if any(pareto.beats(p, preset) for preset in presets)]
    for point in winners:
        print(f"beats a uniform preset: --decoder_config_file {point.optimizations}")
    if not winners:
        print("error: no mixture beats a uniform preset; try more --tokens", file=sys.stderr)
    return 0 if winners else 1


def cuts(moves: Sequence[Move], wanted_us: float) -> list[int]:
    """How many moves the candidates take: as many as save `wanted_us`, and others around that."""
    enough, saved = len(moves), 0.0
    for count, move in enumerate(moves, start=1):
        saved += move.saved_us
        if saved >= wanted_us:
            enough = count
            break
    spread = {round(enough * part) for part in (0.33, 0.67)}
    more = {min(len(moves), enough + step) for step in (0, 2, 4)}
    return sorted((spread | more) - {0})
