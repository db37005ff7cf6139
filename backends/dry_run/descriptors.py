"""Cluster descriptors: what a host would find on the PCIe and Ethernet wires of each product.

The wheel reads one to know which mock chips exist. Written as JSON, which is valid YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Link = tuple[int, int, int, int]  # chip, channel, other chip, its channel

# Board types by the product number in a board's serial number (its upper bits).
_BOARD_NUMBERS = {
    "n150": 0x18, "n300": 0x14, "p100": 0x36, "p150": 0x40, "p300": 0x44, "ubb": 0x35,
    "ubb_blackhole": 0x47,
}  # fmt: skip
# Rows or columns of worker cores fused off in production.
_HARVESTED = {
    "n150": 0x1, "n300": 0x3, "p100": 0xC0, "p150": 0xC0, "p300": 0xC0, "ubb": 0,
    "ubb_blackhole": 0x80,
}  # fmt: skip


def _descriptor(
    board: str,
    num_chips: int,
    links: Iterable[Link] = (),
    *,
    coordinates: dict[int, tuple[int, int]] | None = None,
    pcie_chips: Iterable[int] | None = None,
    boards: list[list[int]] | None = None,
    dram_mask: int = 0,
    ethernet_mask: int = 0,
) -> dict[str, Any]:
    """coordinates: Ethernet position of each chip, required where chips hang on other chips."""
    chips = range(num_chips)
    blackhole = board.startswith("p") or board.endswith("blackhole")
    number = _BOARD_NUMBERS[board] << 36
    harvesting = {
        "noc_translation": True,
        "harvest_mask": _HARVESTED[board],
        "dram_harvesting_mask": dram_mask,
        "eth_harvesting_mask": ethernet_mask,
        "pcie_harvesting_mask": 2 if blackhole else 0,
        "l2cpu_harvesting_mask": 0,
    }
    return {
        "arch": dict.fromkeys(chips, "blackhole" if blackhole else "wormhole_b0"),
        "chips": {chip: [x, y, 0, 0] for chip, (x, y) in (coordinates or {}).items()},
        "chip_unique_ids": {chip: 0x1000 + chip for chip in chips},
        "ethernet_connections": [
            [{"chip": a, "chan": i}, {"chip": b, "chan": j}] for a, i, b, j in links
        ],
        "ethernet_connections_to_remote_devices": [],
        "chips_with_mmio": [{chip: i} for i, chip in enumerate(pcie_chips or chips)],
        "harvesting": dict.fromkeys(chips, harvesting),
        "boards": [
            [{"board_id": number | (i + 1)}, {"board_type": board}, {"chips": group}]
            for i, group in enumerate(boards or [[chip] for chip in chips])
        ],
    }


def n150() -> dict[str, Any]:
    """One Wormhole chip."""
    return _descriptor("n150", 1, coordinates={0: (0, 0)})


def n300() -> dict[str, Any]:
    """Two Wormhole chips on a card; only the first is on PCIe."""
    return _descriptor(
        "n300",
        2,
        [(0, 8, 1, 0), (0, 9, 1, 1)],
        coordinates={0: (0, 0), 1: (1, 0)},
        pcie_chips=[0],
        boards=[[0, 1]],
    )


def t3k() -> dict[str, Any]:
    """Four n300 cards cabled into a 2x4 mesh: card i holds PCIe chip i and remote chip i + 4.

    Channels 4, 5 and 10 to 13 stay free: ethernet dispatch runs there.
    """
    coordinates = {0: (1, 0), 1: (1, 1), 2: (2, 0), 3: (2, 1)}
    coordinates |= {4: (0, 0), 5: (0, 1), 6: (3, 0), 7: (3, 1)}
    cables = [(0, 1, 14), (2, 3, 14), (0, 2, 6), (1, 3, 0), (4, 5, 6), (6, 7, 6)]
    links = [(card, 8 + i, card + 4, i) for card in range(4) for i in (0, 1)]
    links += [(a, channel + i, b, channel + i) for a, b, channel in cables for i in (0, 1)]
    return _descriptor(
        "n300",
        8,
        links,
        coordinates=coordinates,
        pcie_chips=range(4),
        boards=[[card, card + 4] for card in range(4)],
    )


def _grid_links(
    rows: int, columns: int, south: tuple[int, int], east: tuple[int, int], channels: int,
    *, closed: bool,
) -> list[Link]:  # fmt: skip
    """Cables of a grid of chips, chip = row * columns + column; closed: both axes are rings.

    south, east: first channel on a chip, and on its neighbour that way.
    """
    links: list[Link] = []
    for row in range(rows):
        for column in range(columns):
            chip = row * columns + column
            below, right = (row + 1) % rows, (column + 1) % columns
            if closed or below:
                links += [(chip, south[0] + i, below * columns + column, south[1] + i)
                          for i in range(channels)]  # fmt: skip
            if closed or right:
                links += [(chip, east[0] + i, row * columns + right, east[1] + i)
                          for i in range(channels)]  # fmt: skip
    return links


def _galaxy(board: str, channels: int, ethernet_mask: int = 0) -> dict[str, Any]:
    """32 chips as 8 rows of 4, both axes closed into rings; chip = row * 4 + column.

    Four trays of 4x2 chips, mirrored around the middle; a chip's PCIe bus number tells tray and
    place on it.
    """
    rows, columns = 8, 4
    south, east = (2 * channels, channels), (3 * channels, 0)
    links = _grid_links(rows, columns, south, east, channels, closed=True)
    boards = [list(range(rows * columns))]
    found = _descriptor(board, len(boards[0]), links, boards=boards, ethernet_mask=ethernet_mask)
    tray_bases = (0xC0, 0x40, 0x00, 0x80)
    places, buses = {}, {}
    for chip in range(rows * columns):
        row, column = divmod(chip, columns)
        row_on_tray = row if row < 4 else 7 - row
        column_on_tray = column if column < 2 else 3 - column
        places[chip] = 1 + row_on_tray + 4 * column_on_tray
        buses[chip] = f"0x{tray_bases[row // 4 + 2 * (column // 2)] + places[chip]:04x}"
    return found | {"chip_to_bus_id": buses, "asic_locations": places}


def galaxy() -> dict[str, Any]:
    """The Wormhole Galaxy: four channels between neighbours."""
    return _galaxy("ubb", 4)


def blackhole_galaxy() -> dict[str, Any]:
    """The Blackhole Galaxy: two channels between neighbours, as the wheel's graph of it says."""
    return _galaxy("ubb_blackhole", 2, ethernet_mask=288)


def _blackhole_box(
    board: str, rows: int, columns: int, channels: int, chips_per_board: int = 1
) -> dict[str, Any]:
    """Cards in one host, all chips on PCIe, cabled as the wheel's graph of that box says."""
    east = (channels, channels if columns == 2 else 2 * channels)
    links = _grid_links(rows, columns, (0, 0), east, channels, closed=False)
    chips = list(range(rows * columns))
    boards = [chips[i : i + chips_per_board] for i in range(0, len(chips), chips_per_board)]
    found = _descriptor(board, len(chips), links, boards=boards, ethernet_mask=288)
    if chips_per_board > 1:  # chips of a card are told apart by their place on it
        found["asic_locations"] = {chip: chip % chips_per_board for chip in chips}
        right = found["harvesting"][0] | {"pcie_harvesting_mask": 1}
        found["harvesting"] |= {chip: right for chip in chips if chip % chips_per_board}
    return found


def p100() -> dict[str, Any]:
    """One Blackhole chip with seven DRAM banks and no Ethernet."""
    return _descriptor("p100", 1, dram_mask=8, ethernet_mask=16383)


def p150() -> dict[str, Any]:
    """One Blackhole chip."""
    return _descriptor("p150", 1, ethernet_mask=288)


def p300() -> dict[str, Any]:
    """Two Blackhole chips on a card."""
    return _blackhole_box("p300", 1, 2, 2, chips_per_board=2)


def p300_x2() -> dict[str, Any]:
    """Two p300 cards."""
    return _blackhole_box("p300", 2, 2, 2, chips_per_board=2)


def p150_x2() -> dict[str, Any]:
    """Two p150 cards."""
    return _blackhole_box("p150", 1, 2, 4)


def p150_x4() -> dict[str, Any]:
    """Four p150 cards."""
    return _blackhole_box("p150", 2, 2, 4)


def p150_x8() -> dict[str, Any]:
    """Eight p150 cards."""
    return _blackhole_box("p150", 2, 4, 2)


# A 2x4 mesh and a line of eight are two ways to open the same box.
DESCRIPTORS: dict[str, Callable[[], dict[str, Any]]] = {
    "N150": n150,
    "N300": n300,
    "T3K": t3k,
    "T3K_2x4": t3k,
    "TG": galaxy,
    "P100": p100,
    "P150": p150,
    "P300": p300,
    "P150x2": p150_x2,
    "P150x4": p150_x4,
    "P150x8": p150_x8,
    "P300x2": p300_x2,
    "BH_GALAXY": blackhole_galaxy,
}
