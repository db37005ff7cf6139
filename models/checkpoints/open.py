"""Finds weights: a directory, a GGUF file, `default`, or a model on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from models.checkpoints.base import Checkpoint
from models.checkpoints.file_checkpoint import FileCheckpoint
from models.checkpoints.gguf import GgufCheckpoint
from models.checkpoints.gguf_file import SPLIT, split_part
from models.checkpoints.meta import MetaCheckpoint
from models.checkpoints.safetensors_files import SafetensorsCheckpoint
from models.registry import canonical_name
from models.vision_config import no_vision

_HUB_FILES = ["*.json", "model*.safetensors", "tokenizer*", "*.jinja", "merges.txt", "vocab.*"]
_ALTERNATIVES = "give a directory with weights, a .gguf file, a hub name org/model, or `default`"


@dataclass(frozen=True)
class Location:
    """Where a model's files are; `local_name` is what a path or hub name was given as."""

    path: Path  # a directory or a .gguf file
    given: str
    is_path: bool  # the user named a path (its weight cache lies beside it), not a hub name


def resolve(hf_model: str | None = None, llama_dir: str | None = None) -> str:
    """The one model named by HF_MODEL or LLAMA_DIR, `default` if neither; both are an error."""
    if hf_model and llama_dir:
        raise ValueError(
            f"HF_MODEL={hf_model} and LLAMA_DIR={llama_dir} are both set: unset the one you do "
            "not mean"
        )
    if llama_dir and not Path(llama_dir).is_dir():
        raise ValueError(
            f"LLAMA_DIR={llama_dir} is not a directory: it must hold params.json and "
            "consolidated.*.pth as downloaded from Meta"
        )
    return hf_model or llama_dir or "default"


def locate(name_or_path: str | Path) -> Location:
    """Files of a model, downloaded if they are on the hub; ValueError says what would work."""
    given = str(name_or_path)
    path = _as_path(given)
    if given == "default":
        # not above: default_model is a program too, and this package would import it first
        from models.checkpoints.default_model import default_model_path

        return Location(default_model_path(), given, is_path=False)
    if path.is_dir():
        return Location(_gguf_in(path) or path, given, is_path=True)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{given} is a file, but not a .gguf: {_ALTERNATIVES}")
        return Location(first_part(path), given, is_path=True)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not given.startswith("."):
        return Location(_from_hub(given), given, is_path=False)
    if canonical_name(given):
        raise ValueError(
            f"{given} is a known model, but its weights are not at hand: {_ALTERNATIVES}, "
            "or run it with random weights"
        )
    raise ValueError(f"{given} does not exist: {_ALTERNATIVES}")


def _as_path(given: str) -> Path:
    """A path that a file system could have; ValueError otherwise."""
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{given[:100]} cannot be a path ({reason}): {_ALTERNATIVES}") from None
    return path


def first_part(path: Path) -> Path:
    """The file that a split model is opened by, whichever of its parts was named."""
    part = SPLIT.search(path.name)
    return split_part(path, 0, int(part[2])) if part else path


def _gguf_in(directory: Path) -> Path | None:
    """The one GGUF model of a directory that holds no other format."""
    if any(directory.glob("*.safetensors")) or (directory / "params.json").exists():
        return None
    models = sorted({first_part(path) for path in directory.glob("*.gguf")})
    if len(models) > 1:
        names = ", ".join(path.name for path in models[:6])
        raise ValueError(
            f"{directory} holds {len(models)} GGUF models ({names}): name the file, "
            f"e.g. {models[0]}"
        )
    return models[0] if models else None


def _from_hub(name: str) -> Path:
    """The model's snapshot in the hub's cache; what is missing there is downloaded."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the library has many reasons and no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot get {name} from the Hugging Face hub ({reason}): {_ALTERNATIVES}"
        ) from error


def open_checkpoint(
    name_or_path: str | Path, *, num_layers: int | None = None, vision: bool = False
) -> Checkpoint:
    """Weights of a directory, GGUF file, hub name or `default`; `num_layers` keeps the first.

    Of a vision model the text stack alone, unless `vision` asks for images too.
    """
    checkpoint = _open(locate(name_or_path).path, vision=vision)
    if num_layers:
        checkpoint.config = checkpoint.config.with_layers(num_layers)
    return checkpoint


def _open(path: Path, *, vision: bool) -> FileCheckpoint:
    if path.is_file():
        if vision:
            raise no_vision(path.name)
        return GgufCheckpoint(path)
    for file, kind in (("config.json", SafetensorsCheckpoint), ("params.json", MetaCheckpoint)):
        if (path / file).is_file():
            return kind(path, vision=vision)
    found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"{path} holds no model we can read (found {found}): needed are config.json and "
        "safetensors, or params.json and consolidated.*.pth, or one .gguf file"
    )
