"""The report for a browser: one file that fetches nothing, with every part in it."""

from __future__ import annotations

import re

import pytest

from perf import html


def test_the_page_holds_plots_tables_and_breakdowns_and_fetches_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(html, "MODEL", "Llama-3.2-1B")
    monkeypatch.setattr(html, "DEVICES", ("N150", "N300"))
    monkeypatch.setattr(html, "load_rows", lambda path, load=html.load_rows: load(path)[:3])
    text = html.page("# Title\n\n## Part <b>\n\n| a | b |\n|---|---|\n| 1 | `x` |\n\n[y](y.csv)\n")
    assert text.count("<svg") == 1
    assert "<td>1</td>" in text and "<code>x</code>" in text and "Part &lt;b&gt;" in text
    assert text.count('class="bar"') > 10
    assert "PERF.md of 2026" in text
    for anchor in re.findall(r'<a href="#(\w+)"', text):
        assert f'<h2 id="{anchor}">' in text
    assert "<code>y</code>" in text
    assert not re.search(r'(src|href)="[^#]', text.split("<svg")[0] + text.split("</svg>")[1])
