"""Command line of perf.predict: arguments, what-if devices, and the printed answer."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from typing import Any

from backends.command import run
from backends.device_specs import SPECS
from models.numbers import argument
from models.outputs import PICTURES, output_file
from perf.predict.figures import (
    Prediction,
    Workload,
    dump_json,
    predict,
    refuse_images,
    workload_for,
)
from perf.predict.harness import HARNESSES
from perf.predict.what_if import HOSTS, Setting, setting


def parser() -> argparse.ArgumentParser:
    """All arguments."""
    p = argparse.ArgumentParser(
        prog="python -m perf.predict",
        description="Predicted TTFT and tokens/s/user, from the op list of the real forward.",
    )

    def number(name: str, **told: Any) -> None:
        p.add_argument(f"--{name}", type=argument(name), **told)

    p.add_argument("--model", required=True, help="name in models/model_params, or a directory")
    p.add_argument("--device", required=True, help=f"{', '.join(SPECS)}, or a JSON file (what if)")
    number("batch_size", default=1, help="users of one data-parallel group")
    number("prefill_len", default=128, help="tokens of a prompt")
    number("images", default=0, help="in a prompt, of the most tiles")
    p.add_argument("--optimizations", default="performance", help="preset or precision text")
    number("data_parallel", default=1)
    number("generated", default=200, help="tokens; half of them are context")
    p.add_argument(
        "--software", metavar="NAME[+SWITCH=VALUE...]",
        help="whose habits: own (this repository's, the default), 2025 (as the published tables), "
        "2024 (until February 2025), galaxy, 2026, 2026-08; a wrong switch lists them all",
    )  # fmt: skip
    p.add_argument(
        "--harness", choices=list(HARNESSES), default="demo",
        help="how figures are taken: mean of a demo, its first token, or through a server",
    )  # fmt: skip
    p.add_argument(
        "--host", default="usual",
        help=f"{', '.join(HOSTS)}, or how many times as long as usual the host's work takes",
    )  # fmt: skip
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="another device fact, switch or constant: dram_gbps=400 fabric=true gap_us=0.7",
    )  # fmt: skip
    p.add_argument(
        "--without", action="append", default=[], metavar="OP",
        help="leave out an op (all_gather) or a line of the breakdown (collectives)",
    )  # fmt: skip
    p.add_argument("--text_only", action="store_true", help="of a model that also reads images")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "--trace", type=output_file(), help="write the op list as a Chrome/Perfetto trace"
    )
    p.add_argument("--plot", type=output_file(*PICTURES), help="draw time by op group (PNG or SVG)")
    return p


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
        "modelled figures; in brackets what held 80 % of published rows of sources not fitted",
        f"assumes {prediction.assumes}",
    ]
    if prediction.unknown:
        lines[-1] += f"; wider, as no figure was known of this {', '.join(prediction.unknown)}"
    for name, phase in (("decode step", decode), ("prefill of a user", prefill)):
        lines.append(f"\n{name}: {phase.ms:.2f} ms")
        lines += [
            f"  {group:<20} {ms:10.3f} ms  {100 * ms / phase.ms:5.1f} %"
            for group, ms in phase.breakdown.items()
            if abs(ms) >= 0.0005
        ]
    return "\n".join(lines)


def prepare(options: argparse.Namespace) -> tuple[Workload, Setting]:
    """What the arguments ask for."""
    where = setting(options.device, options.software, options.changes, options.host)
    workload = workload_for(
        options.model,
        where.spec,
        software=where.software,
        harness=HARNESSES[options.harness],
        batch_size=options.batch_size,
        data_parallel=options.data_parallel,
        prefill_len=options.prefill_len,
        optimizations=options.optimizations,
        generated=options.generated,
        images=options.images,
    )
    if not (options.text_only or options.images):
        refuse_images(workload)
    return workload, where


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a prediction; bad input is a ValueError of one line."""
    options = parser().parse_args(arguments)
    workload, where = prepare(options)
    answer = predict(
        workload,
        software=where.software,
        harness=HARNESSES[options.harness],
        constants=where.constants,
        without=options.without,
    )
    if options.trace or options.plot:
        from perf.predict.timeline import trace, write_plot, write_trace

        found = trace(workload, where.software, where.constants)
        if options.trace:
            write_trace(options.trace, found)
        if options.plot:
            write_plot(options.plot, answer, f"{workload.model} on {workload.spec.name}", found)
    if options.json:
        settings = {
            "model": str(workload.model), "device": workload.spec.name,
            "batch_size": workload.batch_size, "prefill_len": workload.prefill_len,
            "optimizations": workload.optimizations,
            "data_parallel": workload.data_parallel, "images": workload.images,
            "software": where.software.name, "harness": options.harness,
        }  # fmt: skip
        print(dump_json(settings | answer.as_json()))
    else:
        print(describe(answer))
    return 0


def _main_frozen() -> int:
    status = main()
    gc.freeze()
    return status


if __name__ == "__main__":
    gc.disable()  # else loading torch, and taking it down, spends a fifth of the time on it
    run(_main_frozen, "perf.predict")
