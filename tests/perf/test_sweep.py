"""Sweeps: the front, what fits, what is refused, and each way to show it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from backends.device_specs import SPECS
from perf.predict.what_if import setting
from perf.sweep.__main__ import main
from perf.sweep.points import Point, Sweep, mark_front
from perf.sweep.text import as_csv, text

SMALL = "Llama-3.2-1B"


def point(speed: float, throughput: float, context: int = 128) -> Point:
    return Point(
        "N150", "performance", 1, 1, context, tokens_per_s_per_user=speed, tokens_per_s=throughput
    )


def test_the_front_holds_what_no_point_of_its_context_beats_in_both() -> None:
    found = mark_front(
        [point(10, 100), point(20, 50), point(9, 90), point(20, 40), point(1, 1, context=4096)]
    )
    assert [p.on_front for p in found] == [True, True, False, False, True]


def test_a_sweep_says_what_fits_and_why_not() -> None:
    sweep = Sweep("Llama-3.1-8B", (setting("N150"),), (1, 32), (128, 65536))
    points, (room,) = sweep.points(), sweep.room()
    refused = [p for p in points if p.refused]
    assert [(p.batch, p.context) for p in refused] == [(32, 65536)]
    assert "does not fit N150" in refused[0].refused
    assert room.largest_batch[128] == 32 and room.largest_batch[65536] < 32
    assert room.longest_context[1] > room.longest_context[32] > 128
    fits = room.longest_context[1]
    assert sweep.fits(setting("N150"), "performance", 1, 1, fits)
    assert not sweep.fits(setting("N150"), "performance", 1, 1, fits + 1024)


def test_power_and_boards_divide_throughput_and_two_devices_are_compared() -> None:
    sweep = Sweep(SMALL, (setting("N150"), setting("T3K")), (1,), (128,))
    points = sweep.points()
    n150, t3k = points
    assert n150.tokens_per_s and t3k.tokens_per_s
    assert n150.tokens_per_s_per_watt == pytest.approx(n150.tokens_per_s / 160)
    assert t3k.tokens_per_s_per_watt == pytest.approx(t3k.tokens_per_s / 1200)
    assert t3k.tokens_per_s_per_board == pytest.approx(t3k.tokens_per_s / 4)
    shown = text(points, sweep.room())
    assert "T3K / N150" in shown and "(chips)" not in shown
    lines = list(csv.DictReader(io.StringIO(as_csv(points))))
    assert [line["device"] for line in lines] == ["N150", "T3K"]


@pytest.mark.parametrize(("device", "watts"), [("TG", 32 * 170), ("BH_GALAXY", 32 * 130)])
def test_power_of_chips_alone_is_marked_where_no_other_is_published(
    device: str, watts: float
) -> None:
    sweep = Sweep(SMALL, (setting(device),), (1,), (128,))
    (point,) = sweep.points()
    assert point.tokens_per_s and (point.watts, point.watts_of) == (watts, "chips")
    assert point.tokens_per_s_per_watt == pytest.approx(point.tokens_per_s / watts)
    assert f"{device} {watts} W" in text([point], [])
    assert all(spec.watts[0] > 0 for spec in SPECS.values())


def test_the_command_prints_json_draws_a_picture_and_answers_what_if(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "sweep.svg"
    common = ["--model", SMALL, "--devices", "N150", "--batch", "1", "--context", "128", "--json"]
    assert main([*common, "--plot", str(picture)]) == 0
    plain = json.loads(capsys.readouterr().out)["points"][0]
    assert picture.read_text(encoding="utf-8").count("<svg") == 1
    assert main([*common, "--set", "dram_gbps=576"]) == 0
    faster = json.loads(capsys.readouterr().out)["points"][0]
    assert faster["tokens_per_s_per_user"] > plain["tokens_per_s_per_user"]
    with pytest.raises(ValueError, match="unknown device"):
        main([*common[:2], "--devices", "N3000"])
