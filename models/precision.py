"""How exactly each part of each layer is stored and multiplied.

Six tensor groups get a format, eight op groups a fidelity. Presets are data in precision_presets/;
`--optimizations` strings and decoder files change some entries of the chosen preset and keep the
rest. Pure Python: models/plans/target.py turns these names into TT-NN's configs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from models.config import ModelConfig
from models.fields import read_object, shown
from models.registry import MODEL_PARAMS, canonical_name

PRESETS_DIR = Path(__file__).parent / "precision_presets"
# Settings that published accuracy and speed tables compare: ff1_3 by ff2, then wo by activation.
COMPARED_SETTINGS = Path(__file__).with_name("precision_settings.json")


class TensorGroup(Enum):
    """What is stored; values are the keys of precision_cfg."""

    FF1_FF3 = "ff1_3"
    FF2 = "ff2"
    WQKV = "wqkv"
    WO = "wo"
    KV_CACHE = "kv_cache"
    ACTIVATION = "activation"


class Precision(Enum):
    """How it is stored; `mixed` leaves activations to each op's own preference."""

    BFP4 = "bfp4"
    BFP8 = "bfp8"
    BF16 = "bf16"
    MIXED = "mixed"


class OpGroup(Enum):
    """What multiplies; values are the keys of fidelity_cfg."""

    LI_FF1_FF3 = "li_ff1_3"
    LI_FF2 = "li_ff2"
    LI_QKV_DECODE = "li_qkv_decode"
    LI_O_DECODE = "li_o_decode"
    SDPA_DECODE = "sdpa_decode"
    LI_QKV_PREFILL = "li_qkv_prefill"
    LI_O_PREFILL = "li_o_prefill"
    SDPA_PREFILL = "sdpa_prefill"


class Fidelity(Enum):
    """How it multiplies; the numbers behind each name are in FIDELITY_SETTINGS."""

    LOFI = "lofi"
    HIFI2 = "hifi2"
    HIFI2_NA = "hifi2na"
    HIFI2_FP16 = "hifi2fp16"
    HIFI4 = "hifi4"


@dataclass(frozen=True)
class KernelSettings:
    """One compute kernel: multiplier passes, approximate functions, float32 accumulation."""

    math_fidelity: str
    approx: bool
    fp32_dest_acc: bool
    packer_l1_acc: bool


FIDELITY_SETTINGS: Mapping[Fidelity, KernelSettings] = {
    Fidelity.LOFI: KernelSettings("LoFi", False, False, True),
    Fidelity.HIFI2: KernelSettings("HiFi2", True, True, True),
    Fidelity.HIFI2_NA: KernelSettings("HiFi2", False, False, False),
    Fidelity.HIFI2_FP16: KernelSettings("HiFi2", False, False, True),
    Fidelity.HIFI4: KernelSettings("HiFi4", False, True, True),
}

Group = TensorGroup | OpGroup
Setting = Precision | Fidelity
_Choice = TypeVar("_Choice", bound=Enum)


@dataclass(frozen=True)
class LayerPrecision:
    """Every group's setting for one decoder layer; equal settings are equal and hash alike."""

    tensors: tuple[Precision, ...]  # in the order of TensorGroup
    ops: tuple[Fidelity, ...]  # in the order of OpGroup

    def tensor(self, group: TensorGroup) -> Precision:
        return self.tensors[_TENSOR_INDEX[group]]

    def op(self, group: OpGroup) -> Fidelity:
        return self.ops[_OP_INDEX[group]]

    def changed(self, changes: Mapping[Group, Setting]) -> LayerPrecision:
        """The same layer with some groups set anew."""
        return LayerPrecision(
            tuple(changes.get(g, old) for g, old in zip(TensorGroup, self.tensors, strict=True)),  # type: ignore[misc]
            tuple(changes.get(g, old) for g, old in zip(OpGroup, self.ops, strict=True)),  # type: ignore[misc]
        )

    def canonical(self) -> str:
        """The settings in the grammar of --optimizations; `parse` reads it back."""
        tensors = _join(zip(TensorGroup, self.tensors, strict=True))
        ops = _join(zip(OpGroup, self.ops, strict=True))
        return f"precision_cfg = {{{tensors}}}, fidelity_cfg = {{{ops}}}"


_TENSOR_INDEX = {group: i for i, group in enumerate(TensorGroup)}
_OP_INDEX = {group: i for i, group in enumerate(OpGroup)}


def _join(pairs: Any) -> str:
    return ", ".join(f"{group.value}: {setting.value}" for group, setting in pairs)


@dataclass(frozen=True)
class ModelPrecision:
    """One LayerPrecision per decoder layer; `name` is what tables call it."""

    name: str
    layers: tuple[LayerPrecision, ...]

    def layer(self, index: int) -> LayerPrecision:
        return self.layers[index]

    def canonical(self) -> str:
        """The uniform settings as text; a per-layer file's name where layers differ."""
        if len(set(self.layers)) == 1:
            return self.layers[0].canonical()
        return self.name

    @classmethod
    def preset(cls, name: str, config: ModelConfig) -> ModelPrecision:
        """performance or accuracy, with the model's own exceptions and override file."""
        known = canonical_name(config.name)
        base = preset_layer(name, known or config.name)
        precision = cls(name, (base,) * config.num_layers)
        override = MODEL_PARAMS / (known or "") / f"{name}_decoder_config.json"
        if known is not None and override.is_file():
            # a model cut to fewer layers keeps what the file says about those it has
            return cls(name, _with_decoder_file(precision.layers, override, cut=True))
        return precision

    @classmethod
    def parse(
        cls, text: str, config: ModelConfig, *, preset: str = "performance"
    ) -> ModelPrecision:
        """A preset's name, `precision_cfg = {...}, fidelity_cfg = {...}` (either or both), or
        the path of a decoder file.
        """
        text = " ".join(text.split())
        if text in preset_names():
            return cls.preset(text, config)
        if text.endswith(".json"):
            return cls.from_decoder_config(text, config, preset=preset)
        changes = parse_changes(text)
        layers = tuple(layer.changed(changes) for layer in cls.preset(preset, config).layers)
        return cls(text, layers)

    @classmethod
    def from_decoder_config(
        cls, path: str | Path, config: ModelConfig, *, preset: str = "performance"
    ) -> ModelPrecision:
        """A preset changed layer by layer by a JSON file."""
        path = Path(path)
        base = cls.parse(preset, config)
        return cls(path.stem, _with_decoder_file(base.layers, path))

    def decoder_config(self, base: ModelPrecision) -> dict[str, Any]:
        """What a decoder file says that makes these layers of `base`."""
        decoders: dict[str, Any] = {}
        for index, (old, new) in enumerate(zip(base.layers, self.layers, strict=True)):
            changes = {
                "precision_cfg": _changes(TensorGroup, old.tensors, new.tensors),
                "fidelity_cfg": _changes(OpGroup, old.ops, new.ops),
            }
            sections = {name: entries for name, entries in changes.items() if entries}
            if sections:
                decoders[str(index)] = sections
        return {"decoders": decoders}


def _changes(groups: Any, old: Any, new: Any) -> dict[str, str]:
    """Names of groups and settings that differ, as decoder files spell them."""
    triples = zip(groups, old, new, strict=True)
    return {group.name: after.name for group, before, after in triples if before is not after}


@cache
def _presets() -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(PRESETS_DIR.glob("*.json"))
    }


def preset_names() -> list[str]:
    """The presets there are."""
    return list(_presets())


def preset_layer(name: str, model: str) -> LayerPrecision:
    """A preset's settings of every layer; the longest matching exception by model name wins."""
    presets = _presets()
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(presets)}")
    data = presets[name]
    exceptions = data.get("models", {})
    # settings build up: the preset's own, then exceptions from the general to the particular
    matching = sorted((m for m in exceptions if model.lower().startswith(m.lower())), key=len)
    found: dict[Group, Setting] = {}
    for settings in [data["settings"], *(exceptions[m] for m in matching)]:
        found |= _read_settings(settings, f"preset {name}")
    return LayerPrecision(
        tuple(found[group] for group in TensorGroup),  # type: ignore[misc]
        tuple(found[group] for group in OpGroup),  # type: ignore[misc]
    )


def compared_settings() -> list[str]:
    """The uniform settings that result tables compare, as canonical text."""
    found: list[str] = json.loads(COMPARED_SETTINGS.read_text(encoding="utf-8"))
    return found


_SECTIONS = re.compile(r"(\w+)\s*=\s*\{([^{}]*)\}")


def parse_changes(text: str) -> dict[Group, Setting]:
    """Group settings of an --optimizations string."""
    rest = _SECTIONS.sub("", text).replace(",", " ").strip()
    sections = _SECTIONS.findall(text)
    if rest or not sections:
        raise ValueError(
            f"cannot read optimizations {shown(text, 200)}: use {', '.join(preset_names())}, or "
            "'precision_cfg = {ff1_3: bfp4, ...}, fidelity_cfg = {li_ff1_3: lofi, ...}'"
        )
    settings: dict[str, dict[str, str]] = {}
    for section, body in sections:
        entries = settings.setdefault(section, {})
        for entry in filter(None, (part.strip() for part in body.split(","))):
            key, colon, value = (part.strip() for part in entry.partition(":"))
            if not colon or not value:
                raise ValueError(f"cannot read {entry!r} in {section}: write key: value")
            if key in entries:
                raise ValueError(f"{key} is set twice in {section}")
            entries[key] = value
    return _read_settings(settings, "optimizations")


def _read_settings(sections: Mapping[str, Any], where: str) -> dict[Group, Setting]:
    kinds: dict[str, tuple[type[Enum], type[Enum]]] = {
        "precision_cfg": (TensorGroup, Precision),
        "fidelity_cfg": (OpGroup, Fidelity),
    }
    found: dict[Group, Setting] = {}
    if not all(isinstance(level, Mapping) for level in sections.values()):
        raise ValueError(f"cannot read {where}: {_choices(kinds)}, each with {{key: value}}")
    for section, entries in sections.items():
        if section not in kinds:
            raise ValueError(f"unknown section {section!r} in {where}: {_choices(kinds)}")
        groups, settings = kinds[section]
        for key, value in entries.items():
            group = _pick(groups, key, f"key in {section} of {where}")
            setting = _pick(settings, value, f"value of {group.value} in {where}")
            if setting is Precision.MIXED and group is not TensorGroup.ACTIVATION:
                raise ValueError(f"{group.value} cannot be mixed in {where}: only activation can")
            found[group] = setting  # type: ignore[index,assignment]
    return found


def _pick(kind: type[_Choice], text: str, what: str) -> _Choice:
    """An enum member by value or by name."""
    for member in kind:
        if str(text).lower() == member.value or str(text).upper() == member.name:
            return member
    raise ValueError(f"unknown {what}: {shown(text)}: {_choices(m.value for m in kind)}")


def _choices(names: Any) -> str:
    return f"choose one of {', '.join(names)}"


def _with_decoder_file(
    layers: tuple[LayerPrecision, ...], path: Path, *, cut: bool = False
) -> tuple[LayerPrecision, ...]:
    """Layers changed by {"decoders": {"0": {"precision_cfg": {...}, "fidelity_cfg": {...}}}}.

    `cut` passes over layers that the model does not have.
    """
    try:
        decoders = read_object(path).get("decoders")
        if not isinstance(decoders, dict):
            raise ValueError("it has no decoders")
        for key, sections in decoders.items():
            if not isinstance(sections, dict):
                raise ValueError(f"decoder {shown(key)} is {shown(sections)}, no object")
    except ValueError as error:
        raise ValueError(
            f"cannot read decoder config {path}: {error}: it needs "
            '{"decoders": {"0": {"precision_cfg": {"FF1_FF3": "BFP8"}}}}'
        ) from None
    changed = list(layers)
    for key, sections in decoders.items():
        if cut and key.isdigit() and int(key) >= len(layers):
            continue
        if not key.isdigit() or int(key) >= len(layers):
            raise ValueError(
                f"decoder {key!r} in {path}: the model has decoders 0 to {len(layers) - 1}"
            )
        changes = _read_settings(sections, f"decoder {key} of {path.name}")
        changed[int(key)] = changed[int(key)].changed(changes)
    return tuple(changed)
