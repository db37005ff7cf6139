"""What sets one model family apart, as a few flags each; no algebra and no weights.

Adding a family is one file here plus a line in `_MODULES`; models/README.md has the checklist.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

_MODULES = ("llama", "qwen2", "qwen3", "mistral", "phi3")
ROPE_KINDS = ("linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Family:
    """Flags of one architecture, as named in the `architectures` entry of an HF config.json."""

    architecture: str
    gguf_architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    fused_qkv: bool = False  # q, k and v rows stacked in one checkpoint tensor
    fused_gate_up: bool = False  # gate and up rows stacked in one checkpoint tensor
    # The config key that must be true before `sliding_window` counts; None: it always counts.
    sliding_window_switch: str | None = None
    sliding_window_default: int | None = None  # what HF assumes when the key is absent
    # llama.cpp stores q/k of its "llama" architecture in Meta's pair order, all others in HF's.
    gguf_pair_order: bool = False
    norm_eps_default: float = 1e-6
    rope_kinds: tuple[str, ...] = ROPE_KINDS
    # Wrappers whose `text_config` is a stack of this family (vision towers are not run).
    text_stack_of: tuple[str, ...] = ()


def _load() -> dict[str, Family]:
    modules = (importlib.import_module(f"models.families.{name}") for name in _MODULES)
    return {module.FAMILY.architecture: module.FAMILY for module in modules}


FAMILIES: dict[str, Family] = {}


def family_of(architecture: str) -> Family:
    """The family of an HF architecture name; an unknown one answers with the known ones."""
    for family in FAMILIES.values():
        if architecture == family.architecture or architecture in family.text_stack_of:
            return family
    known = ", ".join(sorted(FAMILIES))
    raise ValueError(f"unknown architecture {architecture!r}: this stack runs {known}")


def family_of_gguf(architecture: str) -> Family:
    """The family of a GGUF `general.architecture` name."""
    for family in FAMILIES.values():
        if architecture == family.gguf_architecture:
            return family
    known = ", ".join(dict.fromkeys(family.gguf_architecture for family in FAMILIES.values()))
    raise ValueError(f"unknown GGUF architecture {architecture!r}: this stack runs {known}")


FAMILIES.update(_load())
