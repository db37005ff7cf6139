"""Placement of the vision tower: rows of all tiles of one image, whole on every chip, in DRAM.

Heads and the feed-forward width are split over the chips of a line. Weights, activations and
fidelity are those of attention's prefill in the first text layer. tt_transformers' demo of 2025
keeps bfloat16 and HiFi4 here for 11B; 8 bits and HiFi2 change nothing that the text could notice
(tests/model/test_vision.py) and halve the matrix products' time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import ttnn
from models.plans.attention import float32_exact
from models.plans.matmul import PrefillLinear, prefill_linear
from models.plans.target import Target
from models.precision import OpGroup, TensorGroup
from models.sharding import TILE, HeadLayout, lay_out_heads, round_up
from models.vision_config import VisionConfig


@dataclass(frozen=True)
class VisionSizes:
    """The tower's sizes on each of `ways` chips; widths are padded to tiles."""

    vision: VisionConfig
    ways: int

    @property
    def heads(self) -> HeadLayout:
        return lay_out_heads(self.vision.num_heads, self.vision.num_heads, self.ways)

    @property
    def local_heads(self) -> int:
        return len(self.heads.query[0])

    @property
    def head_width(self) -> int:
        return round_up(self.vision.head_dim, TILE)

    @property
    def hidden(self) -> int:
        return round_up(self.vision.hidden_dim, TILE * self.ways)

    @property
    def patch_width(self) -> int:
        return round_up(self.vision.patch_values, TILE)

    @property
    def rows(self) -> int:
        """Rows of an image: of as many tiles as there can be."""
        return self.vision.max_tiles * self.vision.tile_rows


@dataclass(frozen=True)
class VisionPlan:
    """Arguments of each op, in the order they run."""

    weight_dtype: Any
    patches: PrefillLinear
    norm_kernel: Any
    qkv: PrefillLinear
    scores: dict[str, Any]
    o: PrefillLinear
    fc1: PrefillLinear
    fc2: PrefillLinear
    projector: PrefillLinear


def vision_plan(target: Target, sizes: VisionSizes) -> VisionPlan:
    """The plan of one image."""
    vision, dim = sizes.vision, sizes.vision.dim
    heads = sizes.local_heads * sizes.head_width

    # what is summed over chips, or only read once: half of what the links carry
    inner = target.activation_dtype(ttnn.bfloat8_b)

    def linear(
        k: int, n: int, *, dtype: Any = ttnn.bfloat16, activation: Any = None
    ) -> PrefillLinear:
        return prefill_linear(
            sizes.rows,
            k,
            n,
            kernel=target.kernel(OpGroup.LI_QKV_PREFILL),
            fp32=target.wide_accumulator(OpGroup.LI_QKV_PREFILL),
            dtype=dtype,
            spec=target.spec,
            most=vision.tile_rows,
            activation=activation,
        )

    chunk = TILE * max(n for n in range(1, 9) if sizes.rows // TILE % n == 0)
    return VisionPlan(
        weight_dtype=target.weight_dtype(TensorGroup.WQKV),
        patches=linear(sizes.patch_width, dim),
        norm_kernel=target.norm_kernel,
        qkv=linear(dim, 3 * heads),
        scores={
            "is_causal": False,
            "scale": float32_exact(vision.head_dim**-0.5),  # of the width without padding
            "program_config": ttnn.SDPAProgramConfig(
                compute_with_storage_grid_size=(8, 8),
                exp_approx_mode=False,
                q_chunk_size=chunk,
                k_chunk_size=chunk,
            ),
            "compute_kernel_config": target.kernel(OpGroup.SDPA_PREFILL),
            "memory_config": ttnn.DRAM_MEMORY_CONFIG,
        },
        o=linear(heads, dim, dtype=inner),
        fc1=linear(
            dim,
            sizes.hidden // sizes.ways,
            dtype=inner,
            activation=ttnn.UnaryWithParam(ttnn.UnaryOpType.GELU, 0),  # 0: not the approximation
        ),
        fc2=linear(sizes.hidden // sizes.ways, dim, dtype=inner),
        projector=linear(vision.output_dim, target.sharding.local_residual),
    )
