"""Renders PERF.md: published, modelled and measured figures side by side, each marked as such.

    python -m perf.report            writes PERF.md
    python -m perf.report --print    prints it
    python -m perf.report --own      each published row beside what our own op lists are predicted
                                     to reach; exits 1 if one is too slow
    python -m perf.report --html generated/report.html    one file for a browser, with plots

Published figures come from targets.json, modelled ones from perf/predict (for the software the
published figures come from), measured ones from generated/benchmark_records.jsonl where a run on
hardware left them. Nothing reads PERF.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from backends.command import run
from backends.device_specs import SPECS
from models.outputs import output_file
from perf.calibrate.published_rows import Row, load_rows
from perf.op_lists.kept import ROOT
from perf.own import Comparison, comparisons, own_lines
from perf.predict.figures import Prediction, predict, workload_for
from perf.record import RECORDS, read_records
from perf.targets import Target, load, published
from perf.vision import COLUMNS as VISION_COLUMNS
from perf.vision import rows as vision_rows

PERF_MD = ROOT / "PERF.md"
HEAD = """# Performance and accuracy

Rendered by `python -m perf.report`; nothing reads this file. Every figure is one of

- **published**: from the tables of the reference implementation (source: [perf/published](perf/published));
- **modelled**: predicted from the op list of the real forward for the software that was published, by
  `python -m perf.predict --model MODEL --device DEVICE --batch_size N --prefill_len S --optimizations ...`;
  how good it is: `python -m perf.calibrate --report`;
- **ours**: predicted from this repository's own op list (`--software own`), with its ratio to the published figure
  (above 1: ours is faster); all rows: `python -m perf.report --own`;
- **measured**: by a run of `{demo}` on hardware (none recorded yet unless shown);
- **measured on the emulator**: token accuracy, which does not depend on speed; the command stands there.

TTFT = prefill of all users (compiled, inputs tokenised) / users, first token included. Speed (t/s/u) =
(N - 1) / time of decode iterations 1 to N - 1, 200 iterations.
"""  # noqa: E501
ACCURACY = """## Token accuracy on the emulator

Top-1 and top-5 by teacher forcing of {tokens} tokens against Hugging Face in float32, each row by
`python -m perf.accuracy --optimizations '...'` (`--record` renews all). The same kind of processor gives the
same digits; these were made with {made}. In bfloat16 Hugging Face itself reaches {hf}.
Published accuracies above are of other texts.
"""  # noqa: E501
VISION = """## Images in, text out: batch 1, one image

Ours by `python -m perf.predict --model MODEL --device DEVICE --images 1 --software own`: a prompt of 128 tokens and an
image of 4 tiles, the tower's pass in TTFT. Published rows ([perf/published/vision_figures.csv](perf/published/vision_figures.csv))
come from other software with images of their own, and nothing is fitted to them.
"""  # noqa: E501
TITLES = {
    ("performance", 1, 128): "Performance: bfp4 FF1 and FF3, batch 1 (per DP group), prefill 128",
    ("accuracy", 1, 128): "Accuracy: bfp8 (70B and 72B: bfp4 FF1 and FF3), batch 1, prefill 128",
    ("performance", 1, 65536): "Long context: performance, batch 1, prefill 64K",
    ("performance", 1, 32768): "Long context: performance, batch 1, prefill 32K",
    ("performance", 32, 128): "Batch 32: performance, prefill 128",
}
COLUMNS = (
    "Model", "Device", "Top-1 (%)", "Top-5 (%)", "Speed published", "Speed modelled",
    "Speed ours", "TTFT published", "TTFT modelled", "TTFT ours", "measured",
)  # fmt: skip


def table(rows: Iterable[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def span(value: float, interval: tuple[float, float], digits: int) -> str:
    """A modelled figure with its 80 % interval."""
    return f"{value:.{digits}f} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def measured(target: Target, records: Sequence[dict[str, object]]) -> str:
    """Figures of the newest hardware run of a configuration."""
    for record in reversed(records):
        key = Target(
            str(record["model"]), str(record["device"]), int(str(record["data_parallel"])),
            int(str(record["batch_size"])), int(str(record["prefill_len"])),
            str(record["optimizations"]), "",
        ).key  # fmt: skip
        if record["provenance"] == "measured" and key == target.key:
            return f"{record['tokens_per_s_per_user']:.1f} t/s/u, {record['ttft_ms']:.0f} ms"
    return ""


def figure_row(target: Target, row: Row | None, records: Sequence[dict[str, object]]) -> list[str]:
    """One line of a table."""
    prediction, ours = modelled(row), None if row is None else Comparison(row)
    groups = f" (DP={target.data_parallel})" if target.data_parallel > 1 else ""
    speed = ttft = ""
    if prediction is not None:
        bands = prediction.interval
        speed = span(prediction.tokens_per_s_per_user, bands["tokens_per_s_per_user"], 1)
        ttft = span(prediction.ttft_ms, bands["ttft_ms"], 0)
    return [
        target.model,
        f"{target.device}{groups}",
        number(target.top1, 0),
        number(target.top5, 0),
        number(target.tokens_per_s_per_user),
        speed,
        "" if ours is None else _ours(ours.own.tokens_per_s_per_user, ours.speed_ratio, 1),
        number(target.ttft_ms, 0),
        ttft,
        "" if ours is None else _ours(ours.own.ttft_ms, ours.ttft_ratio, 0),
        measured(target, records),
    ]


def _ours(value: float, ratio: float | None, digits: int) -> str:
    """A figure of ours with its ratio to the published one."""
    return f"{value:.{digits}f}" + ("" if ratio is None else f" ({ratio:.2f} x)")


def modelled(row: Row | None) -> Prediction | None:
    """Prediction of a published row; None for what is not modelled."""
    return (
        None if row is None else predict(row.workload, software=row.software, harness=row.harness)
    )


def render(records_path: Path = RECORDS) -> str:
    """The whole file."""
    records = read_records(records_path)
    rows = {_key(row): row for row in load_rows()}
    parts = [HEAD.format(demo="demo/simple_text_demo.py")]
    found = published()

    def lines(targets: Iterable[Target]) -> list[list[str]]:
        return [figure_row(t, rows.get(_target_key(t)), records) for t in targets]

    for (mode, batch, length), title in TITLES.items():
        chosen = [
            t
            for t in found
            if (t.optimizations, t.batch_size, t.prefill_len) == (mode, batch, length)
            and not t.has_image
        ]
        parts += [f"## {title}\n", table(lines(chosen)), ""]
    parts.append("## Precision and fidelity: Llama-3.2-1B on N300, batch 1, prefill 128\n")
    custom = [t for t in found if t.optimizations.startswith("precision_cfg")]
    parts += [
        table(
            [[f"`{t.optimizations}`", *line[2:7], line[7]] for t, line in zip(custom, lines(custom),
                                                                              strict=True)],
            ("Optimizations", *COLUMNS[2:7], "TTFT published"),
        ),
        "",
        "TTFTs of these rows come from another harness and are not modelled.\n",
        "## Llama-3.3-70B on a Galaxy, its own demo (demo/text_demo.py)\n",
    ]  # fmt: skip
    galaxy = [t for t in found if t.optimizations == "galaxy"]
    parts += [
        table(
            [[f"{t.source}: batch {t.batch_size}, prefill {t.prefill_len}", *line[4:]]
             for t, line in zip(galaxy, lines(galaxy), strict=True)],
            ("Run", *COLUMNS[4:]),
        ),
        "",
        VISION,
        table(vision_rows(), VISION_COLUMNS),
        "",
        accuracy(),
    ]  # fmt: skip
    return "\n".join(parts)


def accuracy() -> str:
    """Token accuracy measured on the emulator, beside modelled speed."""
    entries = load()["accuracy"]
    if not entries:
        return ""
    rows = []
    for e in entries:
        found = predict(
            workload_for(e["model"], SPECS[e["device"]], optimizations=e["optimizations"])
        )
        band = found.interval["tokens_per_s_per_user"]
        shares = number(e["top1"], 2), number(e["top5"], 2)
        speed = span(found.tokens_per_s_per_user, band, 1)
        rows.append([e["model"], e["device"], f"`{e['optimizations']}`", *shares, speed])
    columns = (
        "Model", "Device", "Optimizations", "Top-1 (%) measured on the emulator",
        "Top-5 (%) measured on the emulator", "Speed modelled",
    )  # fmt: skip
    head = ACCURACY.format(
        made="; ".join(sorted({e["arithmetic"] for e in entries})),
        tokens=entries[0]["tokens"],
        hf="; ".join(sorted({_hf_bfloat16(e["model"]) for e in entries})),
    )
    return f"{head}\n{table(rows, columns)}\n"


def _hf_bfloat16(model: str) -> str:
    """Shares that the model's reference gives for Hugging Face in bfloat16."""
    from runtime.teacher_forcing import reference_path

    shares = json.loads(reference_path(model).read_text(encoding="utf-8"))["hf_bfloat16"]
    return f"{shares['top1']:.2f} and {shares['top5']:.2f}"


def _key(row: Row) -> tuple[object, ...]:
    mode = {"custom": row.precision, "galaxy-opt": "galaxy"}.get(row.mode, row.mode)
    return (row.model, row.device, row.data_parallel, row.batch_size, row.prefill_len, mode)


def _target_key(t: Target) -> tuple[object, ...]:
    return (t.model, t.device, t.data_parallel, t.batch_size, t.prefill_len, t.optimizations)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or print."""
    parser = argparse.ArgumentParser(prog="python -m perf.report")
    parser.add_argument("--print", action="store_true", dest="show", help="print, do not write")
    parser.add_argument(
        "--own", action="store_true", help="print published rows beside ours; 1 if one is too slow"
    )
    parser.add_argument("--html", type=output_file(), help="write one file for a browser instead")
    options = parser.parse_args(arguments)
    if options.own:
        found = list(comparisons())
        print("\n".join(own_lines(found)))
        return int(any(one.misses for one in found))
    text = render()
    if options.html:
        from perf.html import page

        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(page(text), encoding="utf-8")
        print(f"wrote {options.html}")
        return 0
    if options.show:
        print(text)
    else:
        PERF_MD.write_text(text, encoding="utf-8")
        print(f"wrote {PERF_MD}")
    return 0


if __name__ == "__main__":
    run(main, "perf.report")
