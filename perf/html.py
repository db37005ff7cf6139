"""The report as one file for a browser: plots, the published tables beside the model, breakdowns.

Nothing is fetched: pictures are inside. Written by `python -m perf.report --html FILE`.
"""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt

from perf.calibrate.published_rows import ELSEWHERE, Row, load_rows
from perf.cost.constants import provenance
from perf.predict.figures import Prediction, predict, workload_for
from perf.predict.what_if import setting
from perf.sweep.plot import draw
from perf.sweep.points import Sweep
from perf.sweep.text import COLUMNS, cells

MODEL = "Llama-3.1-8B"
DEVICES = ("N150", "N300", "T3K", "P150", "P300x2")
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #b3541e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
td { max-width: 18rem; }
td code { display: inline-block; min-width: 14rem; overflow-wrap: anywhere; }  /* long settings */
table { min-width: 64rem; } figure svg { min-width: 44rem; }  /* narrow windows scroll them */
th { position: sticky; top: 0; background: Canvas; }
.scroll, figure { overflow-x: auto; } nav a { margin-right: 1rem; }
figure { margin: 1rem 0; background: #fff; padding: .5rem; border-radius: 6px; }
figure svg { width: 100%; height: auto; }
.bar { display: grid; grid-template-columns: 11rem 1fr 5rem; gap: .5rem; align-items: center; }
.bar i { background: var(--accent); height: .8rem; border-radius: 2px; }
code { background: var(--soft); padding: 0 .2rem; } .note { opacity: .75; }
"""


def page(markdown: str) -> str:
    """The whole document; `markdown` is PERF.md as it is rendered now."""
    sections = {
        "figures": ("What each device gives", _sweep()),
        "time": ("Where the time goes", _breakdowns()),
        "elsewhere": ("Published elsewhere, and the model", _elsewhere()),
        "tables": ("Published tables, and the model", _tables(markdown)),
    }
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items())
    body = "".join(
        f'<h2 id="{key}">{title}</h2>{content}' for key, (title, content) in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>LLMs on TT-NN: performance</title><style>{STYLE}</style></head><body>"
        f"<h1>LLMs on TT-NN: performance</h1><nav>{links}</nav>"
        '<p class="note">Modelled figures are predicted from the op list of the real forward; '
        "published ones name their source. Intervals held 80 % of rows of sources that no constant "
        f"had seen.</p>{body}</body></html>\n"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = (
        "<tr>"
        + "".join(f"<td>{html.escape(cell).replace('+', '+<wbr>')}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _sweep() -> str:
    where = tuple(setting(name) for name in DEVICES)
    points = Sweep(MODEL, where, (1, 8, 32), (128, 4096, 32768)).points()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.svg"
        draw(path, points, f"{MODEL}, software {points[0].software}")
        svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    note = (
        "<code>python -m perf.sweep</code> makes this for any model, device, precision or what-if."
    )
    return f"<figure>{svg}</figure><p>{note}</p>{_table(COLUMNS, [cells(p) for p in points])}"


def _breakdowns() -> str:
    parts = []
    for device in DEVICES:
        where = setting(device)
        workload = workload_for(MODEL, where.spec, software=where.software)
        found = predict(workload, software=where.software)
        title = f"{MODEL} on {device}, software {where.software.name}"
        parts.append(f"<h3>{title}</h3>{_bars(found)}")
    return "".join(parts)


def _bars(found: Prediction) -> str:
    phase = found.decode
    most = max(phase.breakdown.values())
    bars = "".join(
        f'<div class="bar"><span>{html.escape(group)}</span>'
        f'<i style="width:{100 * ms / most:.1f}%"></i><span>{ms:.2f} ms</span></div>'
        for group, ms in phase.breakdown.items()
        if ms > 0.004 * phase.ms
    )
    return (
        f"<p>A decode step takes {phase.ms:.1f} ms; no kernel could do it in less than "
        f"{phase.limit_ms:.1f}.</p>{bars}"
    )


def _elsewhere() -> str:
    rows = []
    for row in load_rows(ELSEWHERE):
        found = predict(row.workload, software=row.software, harness=row.harness)
        rows.append(_line(row, found))
    columns = (
        "Source", "Harness", "Software", "Configuration", "t/s/u published", "modelled",
        "TTFT published", "modelled", "role",
    )  # fmt: skip
    intervals = ", ".join(f"{k} {v[0]} to {v[1]}" for k, v in provenance()["interval"].items())
    return (
        f"<p>Ratios measured / predicted of the 80 % intervals: {html.escape(intervals)}.</p>"
        + _table(columns, rows)
    )


def _line(row: Row, found: Prediction) -> list[str]:
    speed = row.tokens_per_s_per_user
    groups = f" DP{row.data_parallel}" if row.data_parallel > 1 else ""
    what = f"{row.model} {row.device}{groups}, batch {row.batch_size}, {row.prefill_len} tokens"
    return [
        row.source, row.harness_name, row.software.name, what, f"{speed:.1f}" if speed else "",
        f"{found.tokens_per_s_per_user:.1f}", f"{row.ttft_ms:.0f}" if row.ttft_ms else "",
        f"{found.ttft_ms:.0f}", row.role,
    ]  # fmt: skip


def _tables(markdown: str) -> str:
    """PERF.md below its title; files that it links to are not in one page, so they are named."""
    named = re.sub(r"\[([^]]+)\]\([^)]+\)", r"`\1`", markdown.partition("\n")[2])
    text = MarkdownIt("commonmark", {"html": False}).enable("table").render(named)
    text = text.replace("<table>", '<div class="scroll"><table>').replace(
        "</table>", "</table></div>"
    )
    return text.replace("<h2>", "<h3>").replace("</h2>", "</h3>")
