"""Command line of perf.predict: arguments, what-if devices, and the printed answer."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from backends.device_specs import SPECS, DeviceSpec
from perf.cost.constants import Constants, load_constants
from perf.cost.software import SOFTWARE, Software, software_named
from perf.predict.figures import Job, Prediction, dump_json, job_for, predict

SPEC_FIELDS = {f.name for f in fields(DeviceSpec)}


def parser() -> argparse.ArgumentParser:
    """All arguments."""
    p = argparse.ArgumentParser(
        prog="python -m perf.predict",
        description="Predicted TTFT and tokens/s/user, from the op list of the real forward.",
    )
    p.add_argument("--model", required=True, help="name in models/model_params, or a directory")
    p.add_argument("--device", required=True, help=f"{', '.join(SPECS)}, or a JSON file (what if)")
    p.add_argument("--batch_size", type=int, default=1, help="users of one data-parallel group")
    p.add_argument("--prefill_len", type=int, default=128, help="tokens of a prompt")
    p.add_argument("--images", type=int, default=0, help="in a prompt, of the most tiles")
    p.add_argument("--optimizations", default="performance", help="preset or precision text")
    p.add_argument("--data_parallel", type=int, default=1)
    p.add_argument("--generated", type=int, default=200, help="tokens; half of them are context")
    p.add_argument(
        "--software",
        choices=list(SOFTWARE),
        help="whose habits: 2025 (Wormhole's default, as the published tables), galaxy, "
        "2026 (Blackhole's default), 2026-08, own (this repository)",
    )
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="another device fact or model constant, e.g. dram_gbps=400 or gap_us=0.7",
    )  # fmt: skip
    p.add_argument(
        "--without", action="append", default=[], metavar="OP",
        help="leave out an op (all_gather) or a line of the breakdown (collectives)",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("--trace", type=Path, help="write the op list as a Chrome/Perfetto trace")
    p.add_argument("--plot", type=Path, help="draw time by op group (PNG or SVG)")
    return p


def load_spec(device: str) -> DeviceSpec:
    """A product, or what a JSON file says about an imagined one.

    The file names a product as `base`, and facts that differ: {"base": "N300", "dram_gbps": 576}.
    """
    if device in SPECS:
        return SPECS[device]
    path = Path(device)
    if not path.is_file():
        raise ValueError(
            f"unknown device {device!r}: choose one of {', '.join(SPECS)}, or give a JSON file"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        base = SPECS[values.pop("base")]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f'{device}: expected a JSON object with "base" (one of {", ".join(SPECS)}) and '
            f"device facts, found {error!r}"
        ) from None
    return changed_spec(base, {"name": path.stem} | values)


def changed_spec(spec: DeviceSpec, values: dict[str, Any]) -> DeviceSpec:
    """A product with other facts; lists become tuples, unknown names answer with the list."""
    unknown = set(values) - SPEC_FIELDS
    if unknown:
        raise ValueError(
            f"unknown device fact {', '.join(sorted(unknown))}: known are "
            f"{', '.join(sorted(SPEC_FIELDS))}"
        )
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise ValueError(f"{name} is {value}: use a number above 0")
    tidy: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return replace(spec, **tidy)


def parse_changes(
    texts: Sequence[str], spec: DeviceSpec, constants: Constants
) -> tuple[DeviceSpec, Constants]:
    """Apply --set NAME=VALUE to device facts or constants."""
    facts: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise ValueError(f"--set {text}: write NAME=VALUE")
        try:
            number = json.loads(f"[{value}]" if "," in value else value)
        except ValueError:
            raise ValueError(f"--set {text}: {value!r} is not a number") from None
        (facts if name in SPEC_FIELDS else values)[name] = number
    return changed_spec(spec, facts), constants.with_values(values)


def default_software(spec: DeviceSpec) -> Software:
    """The release that a product's published figures come from."""
    return SOFTWARE["2026" if spec.arch == "blackhole" else "2025"]


def describe(prediction: Prediction) -> str:
    """The answer as a short table."""
    speed, ttft = (prediction.interval[k] for k in ("tokens_per_s_per_user", "ttft_ms"))
    decode, prefill = prediction.decode, prediction.prefill
    lines = [
        f"TTFT            {prediction.ttft_ms:9.1f} ms    ({ttft[0]:.1f} to {ttft[1]:.1f}), "
        f"{100 * prefill.limit_ms / prefill.ms:.0f} % of the physical limit, "
        f"bound by {prefill.bound}",
        f"tokens/s/user   {prediction.tokens_per_s_per_user:9.1f}       "
        f"({speed[0]:.1f} to {speed[1]:.1f}), "
        f"{100 * decode.limit_ms / decode.ms:.0f} % of the physical limit, bound by {decode.bound}",
        f"tokens/s        {prediction.tokens_per_s:9.1f}",
        "modelled figures; in brackets what held 80 % of published rows that were not fitted",
        f"assumes {prediction.assumes}",
    ]
    for name, phase in (("decode step", decode), ("prefill of a user", prefill)):
        lines.append(f"\n{name}: {phase.ms:.2f} ms")
        lines += [
            f"  {group:<20} {ms:10.3f} ms  {100 * ms / phase.ms:5.1f} %"
            for group, ms in phase.breakdown.items()
            if abs(ms) >= 0.0005
        ]
    return "\n".join(lines)


def prepare(options: argparse.Namespace) -> tuple[Job, Software, Constants]:
    """What the arguments ask for."""
    spec, constants = parse_changes(options.changes, load_spec(options.device), load_constants())
    software = software_named(options.software) if options.software else default_software(spec)
    job = job_for(
        options.model,
        spec,
        software=software,
        batch_size=options.batch_size,
        data_parallel=options.data_parallel,
        prefill_len=options.prefill_len,
        optimizations=options.optimizations,
        generated=options.generated,
        images=options.images,
    )
    return job, software, constants


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a prediction; bad input is one line and exit status 2."""
    p = parser()
    options = p.parse_args(arguments)
    try:
        job, software, constants = prepare(options)
        answer = predict(job, software=software, constants=constants, without=options.without)
    except ValueError as error:
        p.exit(2, f"{p.prog}: {error}\n")
    if options.trace or options.plot:
        from perf.predict.timeline import trace, write_plot, write_trace

        found = trace(job, software, constants)
        if options.trace:
            write_trace(options.trace, found)
        if options.plot:
            write_plot(options.plot, answer, f"{job.model} on {job.spec.name}", found)
    if options.json:
        settings = {
            "model": str(job.model), "device": job.spec.name, "batch_size": job.batch_size,
            "prefill_len": job.prefill_len, "optimizations": job.optimizations,
            "data_parallel": job.data_parallel, "images": job.images, "software": software.name,
        }  # fmt: skip
        print(dump_json(settings | answer.as_json()))
    else:
        print(describe(answer))
    return 0


if __name__ == "__main__":
    gc.disable()  # else loading torch, and taking it down, spends a fifth of the time on it
    status = main()
    gc.freeze()
    sys.exit(status)
