"""Facts about each product, per chip unless said otherwise. Pure data; sources beside the numbers.

Mesh shapes are how the product is opened here: a Galaxy as 8 rows of 4, an 8-chip box as a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

# Wormhole: core descriptors and soc descriptors of the ttnn 0.81.1 wheel
_WH_BANK_BYTES = 1_072_693_184  # allocatable bytes of one of 12 DRAM banks
_WH_L1_BYTES = 1_499_136
_WH_L1_FREE = 1_393_312
# Blackhole: the same sources
_BH_BANK_BYTES = 4_277_141_376
_BH_L1_BYTES = 1_572_864
_BH_L1_FREE = 1_461_120

# The matrix unit multiplies 8x16 by 16x16 each cycle: 4096 FLOP per cycle and core at LoFi, and one
# more pass for each step of fidelity (tt-metal technical report GEMM_FLOPS).
FLOP_PER_CYCLE_LOFI = 4096
PASSES: Mapping[str, int] = MappingProxyType({"LoFi": 1, "HiFi2": 2, "HiFi3": 3, "HiFi4": 4})
RECEIVERS = 2  # cores that one of `dram_readers` reads for: the columns to its right


def _whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _real(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and low <= value <= high


def _pair(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(fits, value))


# (fact, whether a value can be meant, what to say where it cannot)
_FACTS: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("name", lambda v: isinstance(v, str) and 0 < len(v) < 100, "a short text"),
    ("arch", lambda v: v in ("wormhole_b0", "blackhole"), "wormhole_b0 or blackhole"),
    *(
        (name, lambda v: _pair(v, lambda x: _whole(x, 1, 64)), "two whole numbers from 1 to 64")
        for name in ("mesh_shape", "compute_grid")
    ),
    (
        "column_grid",
        lambda v: v is None or _pair(v, lambda x: _whole(x, 1, 64)),
        "two whole numbers from 1 to 64",
    ),
    ("links", lambda v: _pair(v, lambda x: _whole(x, 0, 64)), "two whole numbers from 0 to 64"),
    ("ring", lambda v: _pair(v, lambda x: type(x) is bool), "two of true and false"),
    ("eth_dispatch", lambda v: type(v) is bool, "true or false"),
    ("dram_banks", lambda v: _whole(v, 1, 1024), "a whole number from 1 to 1024"),
    *(
        (name, lambda v: _whole(v, 1, 2**50), f"a whole number of bytes from 1 to {2**50}")
        for name in ("dram_bank_bytes", "l1_bytes", "l1_free_bytes")
    ),
    ("dram_gbps", lambda v: _real(v, 1e-3, 1e6), "a number from 0.001 to 1000000"),
    ("clock_ghz", lambda v: _real(v, 1e-3, 1e3), "a number from 0.001 to 1000"),
    ("link_gbps", lambda v: _real(v, 0, 1e6), "a number from 0 to 1000000"),
    ("product", lambda v: isinstance(v, str), "a text"),
    ("boards", lambda v: _whole(v, 1, 1024), "a whole number from 1 to 1024"),
    *(
        (name, lambda v: v is None or _real(v, 1e-3, 1e6), "a number from 0.001 to 1000000")
        for name in ("board_watts", "chip_watts")
    ),
)


@dataclass(frozen=True)
class DeviceSpec:
    """One product: its mesh and what each of its chips can do."""

    name: str
    arch: str  # wormhole_b0 or blackhole
    mesh_shape: tuple[int, int]  # rows, columns
    compute_grid: tuple[int, int]  # worker cores as opened: columns, rows
    dram_banks: int
    dram_bank_bytes: int
    dram_gbps: float  # peak of one chip, 10^9 bytes/s
    l1_bytes: int  # of one core
    l1_free_bytes: int  # of one core, left to tensors and buffers
    clock_ghz: float
    links: tuple[int, int] = (0, 0)  # ethernet links between neighbours along mesh axis 0 and 1
    link_gbps: float = 0.0  # one link, one direction, 10^9 bytes/s
    ring: tuple[bool, bool] = (False, False)  # whether the axis can close into a ring
    # worker nearest each DRAM bank, where others are left to work beside them: columns, rows
    dram_readers: tuple[tuple[int, int], ...] = ()
    # the same two where commands are dispatched from a column of cores, in products that can do so
    column_grid: tuple[int, int] | None = None
    column_readers: tuple[tuple[int, int], ...] = ()
    eth_dispatch: bool = False  # commands go through ethernet cores, freeing a row of workers
    product: str = field(default="")  # the name people use
    boards: int = 1
    board_watts: float | None = None  # total board power of one board; None: not published
    chip_watts: float | None = None  # what firmware lets one chip draw, where that is all there is

    def __post_init__(self) -> None:
        """Refuse facts that no chip has: a file or a command line may state any."""
        for name, fits, needed in _FACTS:
            value = getattr(self, name)
            if not fits(value):
                raise ValueError(f"{name} is {repr(value)[:60]}: use {needed}")
        self._check_grids()

    def _check_grids(self) -> None:
        """Refuse grids that no chip is opened with, or whose readers lie elsewhere."""
        columns, rows = self.compute_grid
        if self.column_grid not in (None, self.compute_grid, (columns - 1, rows + 1)):
            raise ValueError(
                f"column_grid is {self.column_grid}: a chip with {self.compute_grid} cores beside "
                f"a row that dispatches commands has {(columns - 1, rows + 1)} beside a column; "
                "use these, or leave it out"
            )
        if self.column_grid is not None and not self.column_readers:
            raise ValueError(
                f"column_grid is {self.column_grid}, but {self.name} names no column_readers, the "
                "cores nearest to its DRAM banks: set both in a device file, or leave it out"
            )
        for grid, readers in (
            ("compute_grid", self.dram_readers), ("column_grid", self.column_readers)
        ):  # fmt: skip
            size = getattr(self, grid)
            for x, y in readers if size is not None else ():
                if x + RECEIVERS >= size[0] or y >= size[1]:
                    raise ValueError(
                        f"{grid} is {size}, but the core at {(x, y)} reads a DRAM bank for "
                        f"{RECEIVERS} cores to its right: use a grid that holds them all"
                    )

    @property
    def is_from_column(self) -> bool:
        """Whether the cores are those that dispatch from a column leaves."""
        return self.compute_grid == self.column_grid

    def from_column(self) -> DeviceSpec:
        """The product as it is opened with dispatch from a column; one without stays as it is."""
        if self.column_grid is None:
            return self
        return replace(self, compute_grid=self.column_grid, dram_readers=self.column_readers)

    @property
    def num_chips(self) -> int:
        return self.mesh_shape[0] * self.mesh_shape[1]

    @property
    def watts(self) -> tuple[float, str]:
        """Power without the host, of "boards", or of "chips" alone where no other is published."""
        if self.board_watts:
            return self.boards * self.board_watts, "boards"
        return self.num_chips * (self.chip_watts or 0.0), "chips"

    @property
    def num_cores(self) -> int:
        return self.compute_grid[0] * self.compute_grid[1]


def _wormhole(name: str, shape: tuple[int, int], **facts: object) -> DeviceSpec:
    values: dict[str, object] = {
        "compute_grid": (8, 8),
        "dram_banks": 12,
        "dram_bank_bytes": _WH_BANK_BYTES,
        "dram_gbps": 288.0,  # GDDR6 at 12 GT/s
        "l1_bytes": _WH_L1_BYTES,
        "l1_free_bytes": _WH_L1_FREE,
        "clock_ghz": 1.0,
        "link_gbps": 12.5,  # 100 Gb Ethernet
    } | facts
    return DeviceSpec(name, "wormhole_b0", shape, **values)  # type: ignore[arg-type]


def _blackhole(name: str, shape: tuple[int, int] = (1, 1), **facts: object) -> DeviceSpec:
    values: dict[str, object] = {
        "compute_grid": (11, 10),
        "dram_banks": 8,
        "dram_bank_bytes": _BH_BANK_BYTES,
        "dram_gbps": 512.0,  # GDDR6 at 16 GT/s
        "l1_bytes": _BH_L1_BYTES,
        "l1_free_bytes": _BH_L1_FREE,
        "clock_ghz": 1.35,
        # 400 Gb Ethernet, which the fabric runs at half its rate (tech report CCLs)
        "link_gbps": 25.0 if shape != (1, 1) else 0.0,
        "board_watts": 300.0,  # docs.tenstorrent.com/aibs/blackhole/specifications
    } | facts
    return DeviceSpec(name, "blackhole", shape, **values)  # type: ignore[arg-type]


# Blackhole boxes: mesh_graph_descriptors of the ttnn 0.81.1 wheel (two links between neighbours or
# more); the generic demos read four and eight chips as a ring. Power of a p300: its firmware's
# limit. Of the Galaxies, four trays of eight chips, nobody publishes the power of a tray or the
# whole, but what firmware holds a chip to: 170 W on the Wormhole one (tdp_limit that tt-smi shows
# of it, dstack#2898), 130 W on the Blackhole one (GALAXY in tt-system-firmware's configuration).
_TWO = {"links": (0, 2)}
SPECS: Mapping[str, DeviceSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _wormhole("N150", (1, 1), product="Wormhole n150", board_watts=160.0),
            _wormhole(
                "N300", (1, 2), links=(0, 1), eth_dispatch=True, product="Wormhole n300",
                board_watts=300.0,
            ),
            _wormhole(
                "T3K",
                (1, 8),
                links=(0, 1),
                ring=(False, True),
                eth_dispatch=True,
                product="LoudBox / QuietBox",
                boards=4,
                board_watts=300.0,
            ),
            _wormhole(
                "T3K_2x4",
                (2, 4),
                links=(1, 1),
                eth_dispatch=True,
                product="LoudBox / QuietBox as a 2x4 mesh",
                boards=4,
                board_watts=300.0,
            ),
            _wormhole(
                "TG",
                (8, 4),
                compute_grid=(8, 9),
                links=(4, 3),
                ring=(True, True),
                # the wheel's optimal assignment of banks; two that it puts beside the dispatch
                # row, at (3, 8) and (7, 8), stay in the columns of the others
                dram_readers=(
                    (0, 8),
                    (0, 0),
                    (0, 4),
                    (0, 5),
                    (4, 0),
                    (4, 8),
                    (4, 1),
                    (4, 7),
                    (4, 6),
                    (4, 2),
                    (4, 4),
                    (4, 5),
                ),  # fmt: skip
                # the assignment itself, which products on rings of cores take for granted where
                # they read banks: they know a core's bank by its place
                column_grid=(7, 10),
                column_readers=(
                    *((0, row) for row in (9, 0, 4, 5)),
                    *((4, row) for row in (0, 9, 1, 7, 6, 2, 4, 5)),
                ),
                boards=4,
                chip_watts=170.0,
                product="Wormhole Galaxy",
            ),
            _blackhole("P100", dram_banks=7, dram_gbps=448.0, product="Blackhole p100"),
            _blackhole("P150", product="Blackhole p150"),
            _blackhole("P300", (1, 2), **_TWO, board_watts=550.0, product="Blackhole p300"),
            _blackhole("P150x2", (1, 2), **_TWO, boards=2, product="two Blackhole p150"),
            _blackhole(
                "P150x4", (1, 4), **_TWO, ring=(False, True), boards=4,
                product="QuietBox (Blackhole), four p150",
            ),
            _blackhole(
                "P150x8", (1, 8), **_TWO, ring=(False, True), boards=8,
                product="LoudBox (Blackhole), eight p150",
            ),
            _blackhole(
                "P300x2", (1, 4), **_TWO, ring=(False, True), boards=2, board_watts=550.0,
                product="QuietBox 2 (Blackhole), two p300",
            ),
            _blackhole(
                # one column of cores fused off: fw_table.txt of GALAXY in tt-system-firmware
                "BH_GALAXY", (8, 4), compute_grid=(12, 10), links=(2, 2), ring=(True, True),
                boards=4, board_watts=None, chip_watts=130.0, product="Blackhole Galaxy",
            ),
        )
    }
)  # fmt: skip
