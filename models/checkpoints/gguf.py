"""GGUF checkpoints, plain or quantised (Q4_0/1, Q8_0, K-quants ...), under canonical names."""

from __future__ import annotations

from pathlib import Path

import torch

from models.checkpoints.file_checkpoint import FileCheckpoint
from models.checkpoints.gguf_file import GgufFile
from models.checkpoints.names import GGUF, find_sources
from models.config_readers import config_from_gguf


class GgufCheckpoint(FileCheckpoint):
    """Dequantises one tensor at a time, to float32 unless it is stored as a plain float type."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        config = config_from_gguf(path)
        sources = find_sources(
            config,
            GGUF,
            {name: entry.shape for name, entry in self._file.tensors.items()},
            half_order=not config.family.gguf_pair_order,
            file=str(path),
        )
        self._file.check_readable({source.name for source in sources.values()})
        super().__init__(config, sources, self._file.paths)

    def _read(self, stored: str, rows: tuple[int, int] | None) -> torch.Tensor:
        return self._file.read(stored, rows)

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()
