"""Which collectives run over rings: all where the device closes one, but for the debug switches."""

from __future__ import annotations

import pytest
from loguru import logger

from backends.device_specs import SPECS
from runtime.blueprint import LONGEST_ON_LINES, LoadOptions, links_of
from runtime.settings import Settings


@pytest.mark.parametrize(
    ("device", "data_parallel", "ring"),
    [("N300", 1, False), ("T3K", 1, True), ("T3K", 4, False), ("TG", 1, True), ("TG", 4, False)],
)
def test_rings_are_closed_where_one_group_has_the_whole_system(
    device: str, data_parallel: int, ring: bool
) -> None:
    options = LoadOptions(device=device, data_parallel=data_parallel)
    assert links_of(Settings("emulator"), options, SPECS[device]).ring is ring


def test_switches_put_lines_in_their_place_and_long_contexts_are_warned_of() -> None:
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    try:
        settings = Settings(
            "emulator", line_reduce_scatter=True, line_all_gather_names=frozenset({"QKV"})
        )
        for length in (LONGEST_ON_LINES, 2 * LONGEST_ON_LINES):
            options = LoadOptions(device="TG", max_seq_len=length)
            links = links_of(settings, options, SPECS["TG"])
    finally:
        logger.remove(sink)
    assert (links.ring, links.line_reduce, links.line_gather) == (True, True, frozenset({"QKV"}))
    (warning,) = said
    assert "max_seq_len is 32768" in warning
