"""Meta's own files: consolidated.NN.pth (tensor-parallel shards), or repacked layers_A-B.pth.

Read with weights_only, which refuses any pickle that would run code, and memory-mapped.
scripts/repack_weights_70b.py writes the repacked form. The tokenizer, tokenizer.model, lies beside.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.checkpoints.base import expected_shapes
from models.checkpoints.file_checkpoint import FileCheckpoint
from models.checkpoints.names import META, canonical_to_stored, find_sources, normalised
from models.checkpoints.vision_names import meta_shape
from models.config import ModelConfig
from models.config_readers import config_from_meta


def load_pth(path: Path) -> dict[str, torch.Tensor]:
    """Name -> mapped tensor of one .pth file; ValueError if it is cut short or holds code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects beside tensors, which could run code: refused"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ValueError(f"{path} is not a whole PyTorch zip file ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named tensors")
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def weight_files(directory: Path, *, original: bool = False) -> tuple[list[Path], bool]:
    """(files in rank order, whether they are tensor-parallel shards).

    Repacked files are preferred to the original ones beside them, unless `original` is asked for.
    """
    repacked = sorted(directory.glob("layers_*-*.pth"), key=_first_number)
    if repacked and not original:
        return repacked, False
    shards = sorted(directory.glob("consolidated.*.pth"), key=_first_number)
    if not shards:
        raise ValueError(f"{directory} has params.json but no consolidated.*.pth or layers_*.pth")
    for rank, shard in enumerate(shards):
        if _first_number(shard) != rank:
            raise ValueError(f"{directory}: consolidated.{rank:02d}.pth is missing")
    return shards, True


def _first_number(path: Path) -> int:
    match = re.search(r"\d+", path.name)
    return int(match[0]) if match else -1


@dataclass(frozen=True)
class Pieces:
    """Where one stored tensor is: the files with its parts, and the dim they are cut along."""

    files: tuple[Path, ...]
    dim: int | None  # None: whole in every file


class MetaFiles:
    """All tensors of a Meta directory by stored name, joined across shards when read."""

    def __init__(
        self,
        directory: Path,
        whole_shapes: Mapping[str, tuple[int, ...]],
        *,
        original: bool = False,
    ) -> None:
        self.files, sharded = weight_files(directory, original=original)
        self._mapped: dict[Path, dict[str, torch.Tensor]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, Pieces] = {}
        holders: dict[str, list[Path]] = {}
        for file in self.files:
            for name in self._content(file):
                holders.setdefault(name, []).append(file)
        for name, files in holders.items():
            if sharded and len(files) != len(self.files):
                lacking = next(file.name for file in self.files if file not in files)
                raise ValueError(f"{directory}: {name} is not in {lacking}")
            if not sharded and len(files) > 1:
                both = " and in ".join(file.name for file in files[:2])
                raise ValueError(f"{directory}: {name} is both in {both}")
            parts = [tuple(self._content(file)[name].shape) for file in files]
            whole = whole_shapes.get(normalised(META, name))
            self.shapes[name], dim = _join_shapes(directory, name, parts, whole)
            self._pieces[name] = Pieces(tuple(files), dim)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One whole tensor, or some of its rows; of shards only what holds them is read."""
        pieces = self._pieces[name]
        parts = [self._content(file)[name] for file in pieces.files]
        if pieces.dim is None:
            return parts[0] if rows is None else parts[0][rows[0] : rows[1]]
        if rows is None:
            return torch.cat(parts, pieces.dim)
        start, stop = rows
        if pieces.dim != 0:
            return torch.cat([part[start:stop] for part in parts], pieces.dim)
        height = len(parts[0])  # of each shard: they have one shape
        firsts = [rank * height for rank in range(len(parts))]
        return torch.cat(
            [
                part[max(start - first, 0) : max(stop - first, 0)]
                for part, first in zip(parts, firsts, strict=True)
            ]
        )

    def dtype(self, name: str) -> torch.dtype:
        """How a tensor is stored."""
        return self._content(self._pieces[name].files[0])[name].dtype

    def close(self) -> None:
        """Unmap the files; `read` maps them again."""
        self._mapped.clear()

    def _content(self, file: Path) -> dict[str, torch.Tensor]:
        if file not in self._mapped:
            self._mapped[file] = load_pth(file)
        return self._mapped[file]


def _join_shapes(
    directory: Path, name: str, parts: Sequence[tuple[int, ...]], whole: tuple[int, ...] | None
) -> tuple[tuple[int, ...], int | None]:
    """(whole shape, dim the parts are cut along): the config tells columns from rows and copies."""
    part = parts[0]
    if len(parts) == 1 or whole is None:
        return part, None
    if any(other != part for other in parts):
        raise ValueError(f"{directory}: the shards disagree about the shape of {name}")
    if part == whole:
        return whole, None
    for dim in range(len(part)):
        joined = (*part[:dim], part[dim] * len(parts), *part[dim + 1 :])
        if joined == whole:
            return whole, dim
    raise ValueError(
        f"{directory}: {len(parts)} shards of {name}, each {list(part)}, do not make up "
        f"{list(whole)}: is a consolidated.*.pth missing?"
    )


def stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Meta name -> whole shape of every tensor of a model."""
    return {
        canonical_to_stored(META, name): meta_shape(name, config, shape)
        for name, shape in expected_shapes(config).items()
    }


class MetaCheckpoint(FileCheckpoint):
    """Weights of a Meta directory; q/k rows are in pair order already."""

    def __init__(self, directory: Path, *, vision: bool) -> None:
        config = config_from_meta(directory, vision=vision)
        self._meta = MetaFiles(directory, stored_shapes(config))
        if not any(normalised(META, name) == "output.weight" for name in self._meta.shapes):
            config = dataclasses.replace(config, tie_word_embeddings=True)
        sources = find_sources(
            config, META, self._meta.shapes, half_order=False, file=str(directory)
        )
        files = [*self._meta.files, directory / "params.json"]
        super().__init__(config, sources, files)

    def _read(self, stored: str, rows: tuple[int, int] | None) -> torch.Tensor:
        return self._meta.read(stored, rows)

    def close(self) -> None:
        """Unmap the files."""
        self._meta.close()
