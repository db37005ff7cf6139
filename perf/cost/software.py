"""What the software of a release does differently: settings of a prediction, not constants.

`2025` is the generic demo that the published tables of mid 2025 come from, `galaxy` the Galaxy's
own 70B demo of that time, `2026` and `2026-08` the generic demo later (tokens picked on the device,
short prefills traced; then prompts prefilled together), `own` this repository: nothing but what
its op list says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Software:
    """One release's habits."""

    name: str
    device_sampling_users: int = 1  # most users for whom the device picks tokens
    device_sampling_on_grid: bool = False  # also on 2D meshes
    fills_grid: bool = True  # 2D meshes decode a whole tile of users, however few there are
    traced_prefill: bool = False  # up to 1024 tokens prefill is replayed, not dispatched
    batched_prefill: bool = False  # prompts of one length run together
    fabric: bool = False  # collectives of 2026: pipelined, on 2D meshes as fast as on lines
    sharded_on_grid: bool = False  # DRAM-sharded matmuls work there, too
    fused: bool = False  # resharding and user selection are folded into neighbours; prefetcher
    shared_grids: bool = False  # activations of a gated product lie on a grid that suits K and N
    gathers_heads: bool = False  # rings of 8 gather heads inside the output projection
    pads_heads: bool = False  # head widths become powers of two
    mlp_cores: Mapping[str, int] = field(default_factory=dict)  # PAD_MLP_CORES by model
    plans: str = "own"  # whose plans made the op list (models/plans/target.py)
    blackhole_readers: int = 1  # cores that stream one DRAM bank in a DRAM-sharded matmul there

    def readers(self, arch: str) -> int:
        """Cores that stream one DRAM bank in a DRAM-sharded matmul."""
        return self.blackhole_readers if arch == "blackhole" else 1

    def samples_on_device(self, users: int, is_grid: bool) -> bool:
        """Whether a step returns tokens instead of logits."""
        if is_grid and not self.device_sampling_on_grid:
            return False
        return users <= self.device_sampling_users


# its defaults: hidden widths that would not spread over the grid are padded
_MLP_CORES = MappingProxyType({"Qwen2.5-72B": 32, "Qwen2.5-7B": 16, "QwQ-32B": 16})

_GENERIC: dict[str, Any] = {
    "plans": "generic 2025",
    "shared_grids": True,
    "gathers_heads": True,
    "pads_heads": True,
    "mlp_cores": _MLP_CORES,
}
_LATER: dict[str, Any] = {
    "device_sampling_users": 32,
    "device_sampling_on_grid": True,
    "fabric": True,
    "sharded_on_grid": True,
}

SOFTWARE: Mapping[str, Software] = MappingProxyType(
    {
        software.name: software
        for software in (
            Software("2025", **_GENERIC),
            Software("galaxy", plans="generic 2025", traced_prefill=True, fused=True, **_LATER),
            Software(
                "2026",
                traced_prefill=True,
                **_GENERIC,
                **_LATER,
            ),
            Software(
                "2026-08",
                traced_prefill=True,
                batched_prefill=True,
                blackhole_readers=2,  # tt-metal PR 54242
                **_GENERIC,
                **_LATER,
            ),
            Software("own", fills_grid=False, batched_prefill=True, **_LATER),
        )
    }
)  # fmt: skip
PUBLISHED, OWN = SOFTWARE["2025"], SOFTWARE["own"]


def software_named(name: str) -> Software:
    """A release by name; an unknown name answers with the list."""
    if name not in SOFTWARE:
        raise ValueError(f"unknown software {name!r}: choose one of {', '.join(SOFTWARE)}")
    return SOFTWARE[name]
