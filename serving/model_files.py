"""A model as vLLM wants to see it: a Hugging Face directory with config and tokenizer.

A directory that is one already is used as it is. Of a GGUF file the two are made once, without
weights; the config says where those are (`tt_checkpoint`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from backends.scratch import scratch_folder
from models.checkpoints.open import locate
from models.families import family_of_gguf

CHECKPOINT = "tt_checkpoint"  # in config.json: what models/checkpoints/open.py is to open
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "model_cache"


def checkpoint_of(directory: str, hf_config: Any) -> str:
    """Where the weights of a served directory are."""
    return str(getattr(hf_config, CHECKPOINT, None) or directory)


def served_directory(name: str, folder: Path | None = None) -> Path:
    """The directory to give to vLLM for a model named as the demos name it."""
    location = locate(name)
    path = location.path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"{path} is in Meta's format, which vLLM cannot read: give a Hugging Face "
                "directory, a .gguf file or a hub name"
            )
        return path
    made = (folder or DEFAULT_FOLDER) / "served" / path.stem
    if not (made / "config.json").is_file():
        _make(path, made, location.given if location.given == "default" else str(path.resolve()))
    return made


def _make(gguf: Path, made: Path, checkpoint: str) -> None:
    """Whole or not at all, also with two processes at once."""
    from transformers import AutoConfig, AutoTokenizer

    from models.checkpoints.gguf_file import GgufFile

    with GgufFile(gguf) as file:
        family = family_of_gguf(file.field("general.architecture"))
    made.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(made.parent) as scratch:
        unfinished = scratch / made.name
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config.architectures = [family.architecture]
        setattr(config, CHECKPOINT, checkpoint)
        config.save_pretrained(unfinished)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(unfinished)
        if not made.exists():
            os.replace(unfinished, made)
