"""What all checkpoints in files share: names looked up, rows cut, q/k reordered, NaN refused.

A format (safetensors_files.py, meta.py, gguf.py) only says how to read one stored tensor.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from models.checkpoints.base import expected_shapes
from models.checkpoints.names import Source, to_pair_order
from models.checkpoints.vision_names import per_layout, vision_shapes
from models.config import ModelConfig

# Mapped files count as resident while mapped. They are let go after this many bytes were read.
MAPPED_BYTES_LIMIT = 128 * 2**20


class FileCheckpoint:
    """Base of the file formats; subclasses set `_sources` and implement `_read` and `close`."""

    def __init__(
        self, config: ModelConfig, sources: Mapping[str, Source], files: Iterable[Path]
    ) -> None:
        self.config = config
        self._sources = sources
        self._files = sorted(files)
        self._image_shapes = vision_shapes(config)
        self._bytes_since_open = 0
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Hash of the config and of each file's name, size, time of change and first 64 KiB."""
        digest = hashlib.sha256(self.config.digest.encode())
        for file in self._files:
            status = file.stat()
            digest.update(f"{file.name}/{status.st_size}/{status.st_mtime_ns}/".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(64 * 1024))
        return digest.hexdigest()[:24]

    def names(self) -> list[str]:
        """Every canonical name of the (possibly shortened) model."""
        return list(expected_shapes(self.config))

    def get(self, name: str) -> torch.Tensor:
        """One tensor, [out, in], q/k in pair order; NaN or infinity is a ValueError."""
        source = self._sources[name]
        tensor = self._read_checked(source.name, source.rows)
        if source.half_order_heads:
            tensor = to_pair_order(tensor, source.half_order_heads)
        wanted = self._image_shapes.get(name)
        if wanted is None or tensor.shape == wanted:
            return tensor
        assert self.config.vision is not None
        if tensor.numel() != torch.Size(wanted).numel():
            tensor = per_layout(tensor, self.config.vision)
        return tensor.reshape(wanted)

    def get_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of a matrix that is stored in the order we want (not q or k)."""
        source = self._sources[name]
        assert not source.half_order_heads, name
        first = source.rows[0] if source.rows else 0
        return self._read_checked(source.name, (first + start, first + stop))

    def _read_checked(self, stored: str, rows: tuple[int, int] | None) -> torch.Tensor:
        with self._lock:  # reading maps; the pages come in later, outside the lock
            tensor = self._read(stored, rows)
            self._bytes_since_open += tensor.nbytes
            if self._bytes_since_open > MAPPED_BYTES_LIMIT:
                self.close()
                self._bytes_since_open = 0
        if tensor.numel():
            self._refuse_nan(stored, tensor)
        return tensor

    def _refuse_nan(self, stored: str, tensor: torch.Tensor) -> None:
        # NaN and infinity survive aminmax, which reads 10 GB/s and copies nothing
        if all(extreme.isfinite() for extreme in torch.aminmax(tensor)):
            return
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{self.config.name}: {stored} holds {bad} NaN or infinite numbers")

    def _read(self, stored: str, rows: tuple[int, int] | None) -> torch.Tensor:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the files; the next `get` opens them again."""
