"""What a plan is made for: one decoder layer's sizes and precision on one device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from backends import ttnn
from backends.device_specs import DeviceSpec
from models.plans.matmul import (
    GRID_COLS,
    GRID_ROWS,
    L1_BUDGET,
    Kernels,
    Spread,
    dtype_of,
    most_cores,
    rectangle,
    spread,
)
from models.precision import (
    FIDELITY_SETTINGS,
    Fidelity,
    LayerPrecision,
    OpGroup,
    Precision,
    TensorGroup,
)
from models.sharding import TILE, Sharding

# Bytes of a core's L1 that parts of sums may keep for good: more leaves other ops too little, which
# need more themselves where activations are in bfloat16
MOST_PARTS, MOST_WIDE_PARTS = 600_000, 300_000
SHORT = 128  # rows of prompts whose stream and heads fit into L1 beside the ops that take them


class Phase(Enum):
    """Prefill takes whole prompts; decode one token of every user."""

    PREFILL = "prefill"
    DECODE = "decode"


class Habits(Enum):
    """Whose plans: ours, or those that the published tables of mid 2025 were made with.

    The performance model is calibrated on the latter; nothing else should ask for them. The
    Galaxy's own 70B software of that time decoded in the ops of ours, but attended on fewer cores.
    """

    OWN = "own"
    GENERIC_2025 = "generic 2025"
    GALAXY_2025 = "galaxy 2025"

    @property
    def fuses(self) -> bool:
        """Whether a decode step may be of fused ops."""
        return self is not Habits.GENERIC_2025


@dataclass(frozen=True)
class Target:
    """Everything a plan may depend on; equal targets give equal plans."""

    spec: DeviceSpec
    arch: Any
    sharding: Sharding
    precision: LayerPrecision
    batch: int  # decode slots of the whole mesh
    habits: Habits = Habits.OWN
    prefetch: bool = False  # weights of decode are read ahead of time (models/prefetch.py)
    gathers: bool = False  # prefill has copies of weights to gather beside (gathered.py)

    @property
    def users(self) -> int:
        """Decode slots one chip attends for."""
        return self.sharding.local_users(self.batch)

    @property
    def is_own(self) -> bool:
        """Whether plans are ours, and not those of older software."""
        return self.habits is Habits.OWN

    @property
    def is_whole(self) -> bool:
        """Whether a decode step keeps the whole residual stream on every chip of a line.

        Sums of all chips' parts in one op start once and wait for nobody; scattering them and
        gathering them for the next norm does so twice.
        """
        sizes = self.sharding
        return self.is_own and not sizes.is_2d and sizes.num_chips % 2 == 0

    @property
    def residual_width(self) -> int:
        """Columns of a decode step's residual stream that one chip holds."""
        sizes = self.sharding
        return sizes.local_dim if self.is_whole else sizes.local_residual

    @property
    def summed_dtype(self) -> Any:
        """Format of row-parallel products of a decode step, which may travel in blocks."""
        return self.activation_dtype(ttnn.bfloat8_b if self.is_whole else ttnn.bfloat16)

    @property
    def parts_cores(self) -> int:
        """Cores on which the parts of such a sum are added up.

        Those of the stream, which the sum is for; where these lack room, all that can share it.
        """
        near, far = self.stream.cores, most_cores(self.sharding.local_dim)
        most = MOST_PARTS if self.summed_dtype == ttnn.bfloat8_b else MOST_WIDE_PARTS
        return near if self._parts_on(near) <= most else far

    @property
    def parts_bytes(self) -> int:
        """Bytes of a core's L1 in which parts of two such sums arrive, for good (PartsInPlace)."""
        return self._parts_on(self.parts_cores) if self.is_whole else 0

    @property
    def product_room(self) -> int:
        """Bytes of a core's L1 for the buffers of one prefill product."""
        return min(L1_BUDGET, self.left_bytes)

    @property
    def left_bytes(self) -> int:
        """Bytes of a core's L1 that prefill finds free."""
        return self.spec.l1_free_bytes - self.parts_bytes

    def _parts_on(self, cores: int) -> int:
        tiles = self.sharding.num_chips * self.sharding.local_dim // TILE // cores
        return 2 * tiles * (1088 if self.summed_dtype == ttnn.bfloat8_b else 2048)

    def spread(self, width: int, *, most: int = 32, for_norm: bool = False) -> Spread:
        """Where a row of activations lies that a decode matmul reads."""
        if self.is_own:
            return spread(width, self.spec, for_norm=for_norm)
        return rectangle(width, most=most)

    @property
    def stream(self) -> Spread:
        """Where the normed stream lies, which the first matmuls of a block read."""
        return self.spread(self.sharding.local_dim, for_norm=True)

    @property
    def scores_grid(self) -> tuple[int, int]:
        """Columns and rows of the cores that attend.

        All of a chip whose columns are not 8: queries of a decode step lie on its first cores, row
        by row, and the op looks for a user's on the core of that number in a grid of its own.
        """
        columns, rows = self.spec.compute_grid
        return (columns, rows) if self.is_own and columns != GRID_COLS else (GRID_COLS, GRID_ROWS)

    @property
    def row_parallel_cores(self) -> int:
        """Cores that take the result of a row-parallel decode matmul."""
        sizes = self.sharding
        if sizes.num_chips == 1:
            return self.stream.cores  # which is where the residual stream lies
        return most_cores(sizes.local_dim)  # it goes on to other chips

    def kernel(self, group: OpGroup) -> Any:
        """Compute kernel config the precision settings choose for an op group."""
        return Kernels(self.arch)[self.precision.op(group)]

    def wide_accumulator(self, group: OpGroup) -> bool:
        """Whether the op group accumulates in float32."""
        return FIDELITY_SETTINGS[self.precision.op(group)].fp32_dest_acc

    def weight_dtype(self, group: TensorGroup) -> Any:
        return dtype_of(self.precision.tensor(group))

    def sliced_weight(self, group: TensorGroup) -> Precision | None:
        """A weight's format, by which prefill chooses its slices; older software did not look."""
        return self.precision.tensor(group) if self.is_own else None

    @property
    def mlp_slices(self) -> dict[str, int]:
        """Rows that a prefill product of the MLP takes at most and at least, where they are given.

        The generic software of 2025 takes 512 on Blackhole and for models that it lists, those
        whose chips have more than 9216 columns of the hidden width, and 1024 for all others.
        """
        if self.habits is not Habits.GENERIC_2025:
            return {}
        wide = self.sharding.local_hidden > 9216
        rows = 512 if wide or self.spec.arch == "blackhole" else 1024
        return {"most": rows, "least": rows}

    def activation_dtype(self, preferred: Any) -> Any:
        """The chosen activation format; `mixed` leaves every op its own preference."""
        chosen = self.precision.tensor(TensorGroup.ACTIVATION)
        return preferred if chosen is Precision.MIXED else dtype_of(chosen)

    @property
    def head_precision(self) -> Precision:
        """Format of the output projection: bfloat16 where attention asks for it, else bfp8."""
        wqkv = self.precision.tensor(TensorGroup.WQKV)
        return Precision.BF16 if wqkv is Precision.BF16 else Precision.BFP8

    @property
    def head_kernel(self) -> Any:
        """The output projection follows the decode projections where those are bfloat16."""
        if self.head_precision is Precision.BF16:
            return self.kernel(OpGroup.LI_QKV_DECODE)
        return Kernels(self.arch)[Fidelity.HIFI2_FP16]

    @property
    def norm_kernel(self) -> Any:
        """Norms always multiply at full fidelity: they cost nothing and feed everything."""
        return ttnn.init_device_compute_kernel_config(
            self.arch,
            math_fidelity=ttnn.MathFidelity.HiFi4,
            math_approx_mode=False,
            fp32_dest_acc_en=True,
            packer_l1_acc=False,
        )
