"""HF safetensors: one file, or shards with an index, in a directory or a hub cache snapshot."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from safetensors import SafetensorError, safe_open

from models.checkpoints.file_checkpoint import FileCheckpoint
from models.checkpoints.names import HF, find_sources, normalised
from models.config import ModelConfig
from models.config_readers import config_from_hf
from models.fields import is_there, open_file, parse_json, read_object, read_text, shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_HEADER_LIMIT = 100_000_000  # bytes, as the library has it
_COMPARED_ELEMENTS = 4 * 2**20


class SafetensorsCheckpoint(FileCheckpoint):
    """Reads one tensor at a time through a memory map."""

    def __init__(self, directory: Path, *, vision: bool) -> None:
        config = config_from_hf(directory, vision=vision)
        shapes, self._shard_of = _read_headers(directory)
        self._open: dict[Path, Any] = {}
        config = self._untied(config, shapes)
        sources = find_sources(
            config,
            HF,
            shapes,
            half_order=True,
            layer_numbers=_text_layers(directory),
            file=str(directory),
        )
        files = set(self._shard_of.values()) | {directory / "config.json"}
        super().__init__(config, sources, files)

    def _untied(self, config: ModelConfig, shapes: dict[str, list[int]]) -> ModelConfig:
        """As HF has it, a stored output matrix that is not the embedding goes before `tie`."""
        names = {normalised(HF, name): name for name in shapes}
        head, embed = (names.get(f"{HF.tensors[part]}.weight") for part in ("lm_head", "embed"))
        if not config.tie_word_embeddings or head is None or embed is None:
            return config
        shape = shapes[head]
        if shape == shapes[embed] and len(shape) == 2:
            step = max(1, _COMPARED_ELEMENTS // max(1, shape[1]))
            starts = range(0, shape[0], step)
            pairs = ((self._read(name, (at, at + step)) for name in (head, embed)) for at in starts)
            if all(torch.equal(*pair) for pair in pairs):
                return config
        logger.warning(
            f"{config.name}: config.json ties the output matrix to the embedding, but a different "
            f"{head} is stored: it is used, as transformers does"
        )
        return dataclasses.replace(config, tie_word_embeddings=False)

    def _read(self, stored: str, rows: tuple[int, int] | None) -> torch.Tensor:
        shard = self._shard_of[stored]
        if shard not in self._open:
            self._open[shard] = _open_shard(shard)
        if rows is None:
            return self._open[shard].get_tensor(stored)
        return self._open[shard].get_slice(stored)[rows[0] : rows[1]]

    def close(self) -> None:
        """Unmap the shards; tensors already handed out stay valid."""
        self._open.clear()


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error


def _read_headers(directory: Path) -> tuple[dict[str, list[int]], dict[str, Path]]:
    """Shapes of all tensors and the shard that holds each, the index checked against the shards."""
    index = _read_index(directory)
    if index is None:
        files = [directory / SINGLE]
    else:
        files = [directory / shard for shard in sorted(set(index.values()))]
        missing = [file.name for file in files if not is_there(file)]
        if missing:
            raise ValueError(f"{directory}: {INDEX} names {', '.join(missing)}, not in the folder")
    shapes: dict[str, list[int]] = {}
    shard_of: dict[str, Path] = {}
    for file in files:
        _refuse_duplicates(file)
        shard = _open_shard(file)
        for name in shard.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
            if name in shard_of:
                raise ValueError(f"{name} is both in {shard_of[name]} and in {file.name}")
            shapes[name], shard_of[name] = shard.get_slice(name).get_shape(), file
    if index is not None:
        _compare(directory, index, shard_of)
    return shapes, shard_of


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that stands in it twice is a ValueError."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key} is listed twice")
        content[key] = value
    return content


def _refuse_duplicates(path: Path) -> None:
    """The library would keep one of two entries; whatever else is wrong is left to it."""
    with open_file(path) as stream:
        (size,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        text = stream.read(min(size, _HEADER_LIMIT))
    try:
        json.loads(text, object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return
    except ValueError as error:
        raise ValueError(f"the header of {path} is not valid: {error}") from error


def _read_index(directory: Path) -> dict[str, str] | None:
    """Tensor -> file name, or None for a single-file model."""
    path = directory / INDEX
    if not path.exists():
        if (directory / SINGLE).exists():
            return None
        names = [*directory.glob("*.safetensors"), *directory.glob("*.bin")]
        found = f"found {', '.join(sorted(file.name for file in names)) or 'no weights'}"
        raise ValueError(f"{directory} needs {SINGLE}, or shards and {INDEX}: {found}")
    index = parse_json(read_text(path), path, object_pairs_hook=_unique)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} is not a valid index: it has no `weight_map` of names to files")
    outside = [
        file for file in weight_map.values() if not isinstance(file, str) or Path(file).name != file
    ]
    if outside:
        raise ValueError(f"{path} points outside its folder: {shown(outside[0])}")
    return weight_map


def _compare(directory: Path, index: dict[str, str], shard_of: dict[str, Path]) -> None:
    for name, file in index.items():
        actual = shard_of.get(name)
        if actual is None or actual.name != file:
            where = f"in {actual.name}" if actual else "in no shard"
            raise ValueError(f"{directory}: {INDEX} puts {name} in {file}, but it is {where}")
    unlisted = sorted(set(shard_of) - set(index))
    if unlisted:
        first = unlisted[0]
        raise ValueError(f"{directory}: {shard_of[first].name} holds {first}, unknown to {INDEX}")


def _text_layers(directory: Path) -> list[int] | None:
    """Numbers of the self-attention layers where cross-attention layers lie between them."""
    hf = read_object(directory / "config.json")
    text = hf.get("text_config") or {}
    skipped = text.get("cross_attention_layers")
    if not skipped:
        return None
    return [i for i in range(text["num_hidden_layers"]) if i not in skipped]
