"""Seeded random weights of any config: models run at full size where no weights are at hand."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch

from models.checkpoints.base import expected_shapes
from models.config import ModelConfig

INIT_STD = 0.02  # the initializer_range of every supported family
SLICE = 1 << 20  # elements drawn from one seed: threads share out a matrix, on any machine alike
NORM_STD = 0.02  # norms scatter around 1
GATE = 0.7  # gates of a vision model's layers: at 0, where training begins, images change nothing


class RandomCheckpoint:
    """Each slice of a tensor is drawn from its own seed: no order of reading changes anything."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self._seed = seed
        self._shapes = expected_shapes(config)

    @property
    def fingerprint(self) -> str:
        """Config, seed and torch's generator decide every number."""
        return f"random-{self._seed}-{self.config.digest}"

    def names(self) -> list[str]:
        """Every canonical name."""
        return list(self._shapes)

    def get(self, name: str) -> torch.Tensor:
        """One bfloat16 tensor, the same at every call."""
        shape = self._shapes[name]
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            name = "embed.weight"
        is_norm = name.endswith("norm.weight")
        mean = 1.0 if is_norm else GATE if name.endswith("gate") else 0.0
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        std = NORM_STD if is_norm else INIT_STD

        def draw(number: int, part: torch.Tensor) -> None:
            own = f"{self._seed}/{name}/{number}" if number else f"{self._seed}/{name}"
            digest = hashlib.sha256(own.encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            # straight in bfloat16: an 8B model's largest matrix needs no second copy
            part.normal_(mean, std, generator=generator)

        parts = tensor.view(-1).split(SLICE)
        if len(parts) == 1:
            draw(0, tensor)
        else:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(draw, range(len(parts)), parts))
        return tensor

    @property
    def elements(self) -> int:
        """How many numbers a model of these weights holds."""
        return sum(torch.Size(shape).numel() for shape in self._shapes.values())

    def close(self) -> None:
        """Nothing to let go of."""
