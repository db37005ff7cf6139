"""What the software of a release does differently: settings of a prediction, not constants.

`2025` is the generic demo that the published tables of mid 2025 come from, `2024` the same until
February 2025 (slower collectives, prefills that wait for each op), `galaxy` the Galaxy's
own 70B demo of that time, `2026` and `2026-08` the generic demo later (tokens picked on the device,
short prefills traced; then prompts prefilled together), `own` this repository: nothing but what
its op list says. A release is a named set of switches; any can be set alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
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
    early_links: bool = False  # collectives until February 2025
    fabric: bool = False  # collectives of 2026: pipelined, on 2D meshes as fast as on lines
    later_scores: bool = False  # prefill attention is the kernel of 2026
    sharded_on_grid: bool = False  # DRAM-sharded matmuls work there, too
    reads_behind: bool = False  # a step's tokens are read while the device takes the next step
    shared_grids: bool = False  # activations of a gated product lie on a grid that suits K and N
    gathers_heads: bool = False  # rings of 8 gather heads inside the output projection
    pads_heads: bool = False  # head widths become powers of two
    mlp_cores: Mapping[str, int] = field(default_factory=dict)  # PAD_MLP_CORES by model
    plans: str = "own"  # whose plans made the op list (models/plans/target.py)
    blackhole_readers: int = 1  # cores that stream one DRAM bank in a DRAM-sharded matmul there
    waits_for_dispatch: bool = False  # until March 2025 each op of a prefill was waited for
    groups_beside: bool = False  # prompts of all groups are sent before any result is read
    pads_prompts: bool = False  # to a power of two from 128 on, or to a multiple of 2048
    one_token_over: bool = False  # a client's prompts are a token longer than it says
    lean_host: bool = False  # the host's loop around a decode step since autumn 2025
    slow_first_request: bool = False  # a server's first request of a series waits, until then
    samples_idle_slots: bool = False  # a server of early 2025 samples slots without users, too

    def readers(self, arch: str) -> int:
        """Cores that stream one DRAM bank in a DRAM-sharded matmul."""
        return self.blackhole_readers if arch == "blackhole" else 1

    def padded_len(self, prefill_len: int) -> int:
        """Tokens that a prompt is padded to; 0 where this repository's own padding holds."""
        if not self.pads_prompts:
            return 0
        tokens = prefill_len + self.one_token_over
        return max(128, min(1 << (tokens - 1).bit_length(), -(-tokens // 2048) * 2048))

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
    "pads_prompts": True,
    "mlp_cores": _MLP_CORES,
}
_LATER: dict[str, Any] = {
    "device_sampling_users": 32,
    "device_sampling_on_grid": True,
    "groups_beside": True,  # tt-metal#33146, November 2025
    "fabric": True,
    "later_scores": True,
    "sharded_on_grid": True,
}

SOFTWARE: Mapping[str, Software] = MappingProxyType(
    {
        software.name: software
        for software in (
            Software("2024", early_links=True, waits_for_dispatch=True, **_GENERIC),
            Software("2025", **_GENERIC),
            Software(
                "galaxy", plans="galaxy 2025", traced_prefill=True, reads_behind=True, **_LATER
            ),
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
            Software(
                "own",
                fills_grid=False,
                batched_prefill=True,
                traced_prefill=True,
                reads_behind=True,
                **_LATER,
            ),
        )
    }
)  # fmt: skip
OWN = SOFTWARE["own"]


def software_named(text: str) -> Software:
    """A release by name, switches after it: "2025+traced_prefill=true+device_sampling_users=32"."""
    name, *switches = text.split("+")
    if name not in SOFTWARE:
        raise ValueError(f"unknown software {name!r}: choose one of {', '.join(SOFTWARE)}")
    values = dict(switch.partition("=")[::2] for switch in switches)
    return with_switches(SOFTWARE[name], values)


def with_switches(software: Software, values: Mapping[str, str]) -> Software:
    """A release with some habits set by hand, each on its own; unknown names answer with the list.

    Its name tells what was changed.
    """
    if not values:
        return software
    known = switch_names()
    changed: dict[str, Any] = {}
    for name, text in values.items():
        if name not in known:
            raise ValueError(f"unknown switch {name!r}: known are {', '.join(sorted(known))}")
        if known[name] == "bool":
            if text.lower() not in _BOOLEANS:
                raise ValueError(f"{name}={text}: use true or false")
            changed[name] = _BOOLEANS[text.lower()]
        elif text.isdecimal():
            changed[name] = int(text)
        else:
            raise ValueError(f"{name}={text}: use a whole number")
    label = "+".join([software.name, *(f"{name}={text}" for name, text in values.items())])
    return replace(software, name=label, **changed)


def switch_names() -> dict[str, str]:
    """What can be set of a release by hand, with its type."""
    return {f.name: str(f.type) for f in fields(Software) if f.type in ("bool", "int")}


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
