"""Finds the facts of a known model by name: model_params/<model>/config.json. No weights.

Names match without regard to case, dashes, the organisation, "Meta-" or "-Instruct".
"""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path

from models.config import ModelConfig
from models.config_readers import config_from_gguf, config_from_hf, config_from_meta
from models.fields import is_there, shown
from models.vision_config import no_vision

MODEL_PARAMS = Path(__file__).parent / "model_params"
DEFAULT_MODEL = "SmolLM2-135M-Instruct"
# what people type for a model of the same shape
ALIASES = {
    "Mistral-7B": "Mistral-7B-Instruct-v0.3",
    "Mistral-7B-v0.3": "Mistral-7B-Instruct-v0.3",
    "Qwen2.5-32B": "Qwen2.5-Coder-32B",
    "Phi-3-mini": "Phi-3-mini-128k",
}


def _key(name: str) -> str:
    """What two spellings of one model have in common."""
    base = name.rstrip("/").split("/")[-1].lower()
    base = re.sub(r"^meta-", "", base)
    base = re.sub(r"-(instruct|it)(?=-|$)", "", base)
    return re.sub(r"[-_ ]", "", base).replace("vision", "")


@functools.cache
def _known() -> dict[str, str]:
    names = sorted(path.parent.name for path in MODEL_PARAMS.glob("*/config.json"))
    return {_key(name): name for name in names} | {_key(a): name for a, name in ALIASES.items()}


def model_names() -> list[str]:
    """Every model with a config.json under model_params."""
    return sorted(set(_known().values()), key=str.lower)


def canonical_name(name: str) -> str | None:
    """The folder name under model_params that a spelling means, or None."""
    return DEFAULT_MODEL if name == "default" else _known().get(_key(name))


def model_params_dir(name: str) -> Path:
    """The folder of a known model's facts and overrides; an unknown name answers with the list."""
    known = canonical_name(name)
    if known is None:
        by_lower = {candidate.lower(): candidate for candidate in model_names()}
        near = difflib.get_close_matches(
            name.split("/")[-1].lower(), list(by_lower), n=3, cutoff=0.5
        )
        hint = f"did you mean {' or '.join(by_lower[match] for match in near)}? " if near else ""
        raise ValueError(
            f"unknown model {shown(name)}: {hint}known are default, {', '.join(model_names())}; "
            "a directory with a config.json works too"
        )
    return MODEL_PARAMS / known


def load_config(name_or_dir: str | Path, *, vision: bool = False) -> ModelConfig:
    """Config of a known model by name, or of the model in a directory or GGUF file.

    A vision model is read as its text stack alone, unless `vision` asks for images too.
    """
    path = Path(name_or_dir)
    if not is_there(path):
        path = MODEL_PARAMS  # holds no model itself: the name of a known one must be meant
    if (path / "config.json").is_file():
        return config_from_hf(path, vision=vision)
    if (path / "params.json").is_file():
        return config_from_meta(path, vision=vision)
    if path.suffix == ".gguf" and path.is_file():
        if vision:
            raise no_vision(path.name)
        return config_from_gguf(path)
    directory = model_params_dir(str(name_or_dir))
    return config_from_hf(directory, name=directory.name, vision=vision)
