"""What sets one model family apart, as a few flags each; no algebra and no weights.

Adding a family is one file here plus a line in `_MODULES`; models/README.md has the checklist.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    has_sliding_window: bool = True  # False: HF ignores the key `sliding_window`
    # The config key that must be true before `sliding_window` counts; None: it always counts.
    sliding_window_switch: str | None = None
    # llama.cpp stores q/k of its "llama" architecture in Meta's pair order, all others in HF's.
    gguf_pair_order: bool = False
    # What HF's config class assumes where config.json lacks a key (a test compares them).
    defaults: Mapping[str, Any] = field(default_factory=dict)
    bias_keys: tuple[str, ...] = ()  # keys that would switch biases on which we do not have
    rope_kinds: tuple[str, ...] = ROPE_KINDS
    # Wrappers whose `text_config` is a stack of this family (vision towers are not run), each with
    # the defaults that differ there.
    text_stack_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


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
    raise ValueError(f"unknown architecture {architecture[:60]!r}: this stack runs {known}")


def family_of_gguf(architecture: str) -> Family:
    """The family of a GGUF `general.architecture` name."""
    for family in FAMILIES.values():
        if architecture == family.gguf_architecture:
            return family
    known = ", ".join(dict.fromkeys(family.gguf_architecture for family in FAMILIES.values()))
    raise ValueError(f"unknown GGUF architecture {architecture[:60]!r}: this stack runs {known}")


FAMILIES.update(_load())
