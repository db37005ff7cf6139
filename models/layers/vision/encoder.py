"""From an image's patches to the states that text looks at: local layers, global layers, projector.

What the text sees of an image is the last state beside those of a few local layers, projected to
the text stack's width. Tables and masks are vision_tables.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from backends import ttnn
from backends.op_record import scope
from models import vision_tables as tables
from models.layers.layer_norm import LayerNorm
from models.layers.vision.block import VisionBlock
from models.plans.matmul import sliced_linear
from models.plans.target import Target
from models.plans.vision import VisionSizes, vision_plan
from models.weights import WeightLoader, pad_to


class VisionEncoder:
    """The tower and its projector; one image at a time."""

    def __init__(self, weights: WeightLoader, target: Target, ccl: Any) -> None:
        vision = target.sharding.config.vision
        assert vision is not None
        self.vision, self.ccl = vision, ccl
        self.sizes = sizes = VisionSizes(vision, target.sharding.num_chips)
        self.plan = plan = vision_plan(target, sizes)
        norm = {"epsilon": vision.norm_eps, "kernel": plan.norm_kernel}
        with scope("vision"):
            self.w_patches = weights.place(
                "vision.patches",
                weights.transposed("vision.patches.weight", sizes.patch_width, vision.dim),
                (None, None),
                dtype=plan.weight_dtype,
            )
            self.pre_norm = LayerNorm("vision.pre_norm", weights, **norm)
            self.post_norm = LayerNorm("vision.post_norm", weights, **norm)
            self._load_tables(weights)
        self.layers, self.global_layers = (
            [
                VisionBlock(f"vision.{kind}.{i}", weights, sizes, plan, ccl, gated=gated)
                for i in range(count)
            ]
            for kind, count, gated in (
                ("layers", vision.num_layers, False),
                ("global_layers", vision.num_global_layers, True),
            )
        )
        with scope("projector"):
            self._load_projector(weights)

    def _load_tables(self, weights: WeightLoader) -> None:
        """Everything that depends on the layout of tiles, or their number alone."""
        v, rows, get = self.vision, self.sizes.rows, weights.checkpoint.get
        layouts = range(1, len(v.ratios) + 1)
        self.positions = [
            weights.constant(
                f"vision.positions.{layout}",
                (1, 1, rows, v.dim),
                partial(tables.position_table, get, v, layout),
                dtype=ttnn.bfloat16,
            )
            for layout in layouts
        ]
        self.post_tile = [
            weights.constant(
                f"vision.post_tile.{layout}",
                (1, v.max_tiles, 1, v.dim),
                partial(tables.tile_table, get, v, layout, "post_tile"),
                dtype=ttnn.bfloat16,
            )
            for layout in layouts
        ]
        self.token_rows = weights.constant(
            "vision.token_rows", (1, 1, rows, 1), lambda: tables.token_rows(v), dtype=ttnn.bfloat16
        )
        self.masks = [
            weights.constant(
                f"vision.mask.{tiles}",
                (1, 1, rows, rows),
                partial(tables.encoder_mask, v, tiles),
                dtype=ttnn.bfloat4_b,
            )
            for tiles in range(1, v.max_tiles + 1)
        ]

    def _load_projector(self, weights: WeightLoader) -> None:
        v, width = self.vision, weights.sharding.dim

        def columns() -> torch.Tensor:
            """Rows of the weight in the order of the concatenation: state by state.

            Checkpoints have the intermediate states' numbers of one column side by side.
            """
            weight = weights.checkpoint.get("projector.weight")
            last, others = weight[:, : v.dim], weight[:, v.dim :]
            others = others.reshape(-1, v.dim, len(v.intermediate_layers)).mT
            whole = torch.cat([last, others.reshape(-1, v.output_dim - v.dim)], 1)
            return pad_to(whole.T, v.output_dim, width)[None, None]

        def bias() -> torch.Tensor:
            row = weights.checkpoint.get("projector.bias").reshape(1, -1)
            return pad_to(row, 1, width)[None, None]

        axes = (None, "residual")
        self.w_projector = weights.place("projector", columns, axes, dtype=self.plan.weight_dtype)
        self.b_projector = weights.place("projector.bias", bias, axes, dtype=ttnn.bfloat16)

    def __call__(self, patches_11RP: Any, *, layout: int, tiles: int) -> Any:
        """States [1, 1, R, D] of one image at the text's width, on every chip; `layout` from 1."""
        v, mask, rows = self.vision, self.masks[tiles - 1], self.sizes.rows
        with scope("vision.patches"):
            x_11RD = sliced_linear(patches_11RP, self.w_patches, self.plan.patches)
            x_11RD = ttnn.add(x_11RD, self.positions[layout - 1])
            x_11RD = ttnn.multiply(self.pre_norm(x_11RD), self.token_rows)
        seen = []
        for index, layer in enumerate(self.layers):
            before, x_11RD = x_11RD, layer(x_11RD, mask)
            if index - 1 not in v.intermediate_layers:
                ttnn.deallocate(before)
            if index in v.intermediate_layers:
                seen.append(x_11RD)
        with scope("vision.tiles"):
            x_1TSD = ttnn.reshape(self.post_norm(x_11RD), (1, v.max_tiles, v.tile_rows, v.dim))
            x_1TSD = ttnn.add(x_1TSD, self.post_tile[layout - 1])
            x_11RD = ttnn.reshape(x_1TSD, (1, 1, rows, v.dim))
        for layer in self.global_layers:
            before, x_11RD = x_11RD, layer(x_11RD, mask)
            ttnn.deallocate(before)
        with scope("projector"):
            return self._project([x_11RD, *seen])

    def _project(self, states_11RD: Sequence[Any]) -> Any:
        joined = ttnn.concat(list(states_11RD), dim=3)
        for state in states_11RD:
            ttnn.deallocate(state)
        out_11RD = sliced_linear(
            joined, self.w_projector, self.plan.projector, bias=self.b_projector
        )
        ttnn.deallocate(joined)
        return self.ccl.gather_residual(out_11RD, ttnn.DRAM_MEMORY_CONFIG)
