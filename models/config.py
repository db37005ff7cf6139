"""The numbers that define a model, frozen, whatever file they came from. Imports no torch.

Files are read in config_readers.py; known models are found by name in registry.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from models.families import ROPE_KINDS, Family, family_of
from models.vision_config import VisionConfig

# What each size may be: far above every model there is, and small enough to be counted up to.
SIZES = {
    "dim": (1, 2**20),
    "num_layers": (1, 1024),
    "num_heads": (1, 4096),
    "num_kv_heads": (1, 4096),
    "head_dim": (1, 4096),
    "hidden_dim": (1, 2**24),
    "vocab_size": (1, 2**24),
    "max_position_embeddings": (1, 2**31 - 1),
}
NUMBERS = {"norm_eps": (0.0, 1.0), "rope_theta": (2.0, 1e15)}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched; a kind reads only its own numbers."""

    kind: str  # linear, llama3, yarn or longrope; "no scaling" is None instead of a RopeScaling
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None  # llama3
    high_freq_factor: float | None = None  # llama3
    beta_fast: float | None = None  # yarn
    beta_slow: float | None = None  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn
    attention_factor: float | None = None  # yarn, longrope
    short_factor: tuple[float, ...] | None = None  # longrope
    long_factor: tuple[float, ...] | None = None  # longrope

    def __post_init__(self) -> None:
        needed = {
            "linear": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
            "yarn": (),
            "longrope": ("short_factor", "long_factor"),
        }
        if self.kind not in needed:
            raise ValueError(f"unknown rope kind {self.kind!r}: known are {', '.join(ROPE_KINDS)}")
        missing = [name for name in needed[self.kind] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"rope kind {self.kind!r} needs {', '.join(missing)} in rope_scaling")
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.kind == "llama3" and low is not None and high is not None and low >= high:
            raise ValueError(
                f"low_freq_factor {low:g} of rope_scaling must be below high_freq_factor {high:g}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only language model. Sizes in elements, as the checkpoint has them, unpadded."""

    name: str
    architecture: str
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    attention_multiplier: float | None = None  # None: 1 / sqrt(head_dim)
    bos_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    vision: VisionConfig | None = None  # None: a text model, or the text stack of a vision model

    def __post_init__(self) -> None:
        for field, (least, most) in SIZES.items():
            value = getattr(self, field)
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(
                    f"{self.name}: {field} is {value!r}: use a whole number from {least} to {most}"
                )
        for field, (low, high) in NUMBERS.items():
            number = getattr(self, field)
            if not low <= number <= high:  # also false of NaN
                raise ValueError(f"{self.name}: {field} is {number}: use {low:g} to {high:g}")
        for field in ("bos_token_ids", "eos_token_ids"):
            for token in getattr(self, field):
                if not 0 <= token < self.vocab_size:
                    raise ValueError(
                        f"{self.name}: {field[:3]}_token_id {token} is outside the vocabulary, "
                        f"which has tokens 0 to {self.vocab_size - 1}"
                    )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.name}: {self.num_heads} attention heads do not divide into "
                f"{self.num_kv_heads} key-value heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"{self.name}: head_dim is {self.head_dim}, rotary needs an even one")
        scaling = self.rope_scaling
        for key in ("short_factor", "long_factor"):
            factors = getattr(scaling, key, None)
            if factors is not None and len(factors) != self.head_dim // 2:
                raise ValueError(
                    f"{self.name}: rope {key} has {len(factors)} numbers, "
                    f"head_dim {self.head_dim} needs {self.head_dim // 2}"
                )

    @property
    def family(self) -> Family:
        """The flags of this architecture."""
        return family_of(self.architecture)

    @property
    def attention_scale(self) -> float:
        """What query-key products are multiplied by before the softmax."""
        return self.attention_multiplier or self.head_dim**-0.5

    @property
    def q_dim(self) -> int:
        """Rows of wq and columns of wo; need not equal dim."""
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of wk and of wv."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights of the model; tied embeddings count once."""
        attention = self.dim * (2 * self.q_dim + 2 * self.kv_dim)
        attention += (
            self.q_dim + 2 * self.kv_dim
        ) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        tables = 1 if self.tie_word_embeddings else 2
        total = self.num_layers * layer + tables * self.vocab_size * self.dim + self.dim
        if self.vision is not None:
            cross = layer + 2 * self.head_dim + 2  # norms of heads, gates
            total += len(self.vision.cross_before) * cross + self.vision.num_parameters
            total += self.dim * (self.vision.output_dim + 1 + self.vision.embedding_rows)
        return total

    @property
    def digest(self) -> str:
        """Hash of everything that shapes weights or results; the name and stop tokens do not."""
        facts = dataclasses.asdict(self)
        for key in ("name", "bos_token_ids", "eos_token_ids"):
            del facts[key]
        if self.vision is None:
            del facts["vision"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def with_layers(self, num_layers: int) -> ModelConfig:
        """The same model cut to its first `num_layers` decoders."""
        if not 1 <= num_layers <= self.num_layers:
            raise ValueError(
                f"{self.name} has {self.num_layers} layers: num_layers must be 1 to "
                f"{self.num_layers}, got {num_layers}"
            )
        return dataclasses.replace(self, num_layers=num_layers)
