"""Rotary frequencies of a model in plain Python; layers/rope.py turns them into device tables.

Formulas: linear (positions divided), llama3 (Llama 3.1 report), yarn (arXiv 2309.00071) and
longrope (arXiv 2402.13753).
"""

from __future__ import annotations

import math

from models.config import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig, max_seq_len: int) -> tuple[list[float], float]:
    """(radians per position for each of head_dim/2 pairs, factor on every cos and sin).

    `max_seq_len` matters to longrope only, which has other factors for contexts that pass the
    length the model was trained at.
    """
    plain = [config.rope_theta ** (-2 * i / config.head_dim) for i in range(config.head_dim // 2)]
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return [frequency / _factor(config, scaling) for frequency in plain], 1.0
    if scaling.kind == "llama3":
        trained = _trained_length(config, scaling)
        return [llama3_frequency(frequency, scaling, trained) for frequency in plain], 1.0
    if scaling.kind == "yarn":
        return _yarn(plain, config, scaling)
    return _longrope(plain, config, scaling, max_seq_len)


def short_context(config: ModelConfig, max_seq_len: int) -> int:
    """Contexts up to this length turn by other angles than longer ones; 0: by the same."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "longrope":
        return 0
    trained = _trained_length(config, scaling)
    return trained if trained < max_seq_len else 0


def _trained_length(config: ModelConfig, scaling: RopeScaling) -> int:
    return scaling.original_max_position_embeddings or config.max_position_embeddings


def _factor(config: ModelConfig, scaling: RopeScaling) -> float:
    """How much longer than trained the context is; unless stated, the ratio of the two lengths."""
    if scaling.factor is not None:
        return scaling.factor
    return config.max_position_embeddings / _trained_length(config, scaling)


def llama3_frequency(frequency: float, scaling: RopeScaling, trained: int) -> float:
    """Llama 3's rule: long waves are stretched, short ones kept, those between blended."""
    low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
    turns = trained * frequency / (2 * math.pi)  # of this pair within the trained context
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return (1 - kept) * frequency / (scaling.factor or 1.0) + kept * frequency


def _yarn(
    plain: list[float], config: ModelConfig, scaling: RopeScaling
) -> tuple[list[float], float]:
    factor, trained = _factor(config, scaling), _trained_length(config, scaling)

    def pair_with_turns(turns: float) -> float:
        """The (fractional) pair that turns so often within the trained context."""
        waves = math.log(trained / (turns * 2 * math.pi))
        return config.head_dim * waves / (2 * math.log(config.rope_theta))

    first, last = pair_with_turns(scaling.beta_fast or 32), pair_with_turns(scaling.beta_slow or 1)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    width = (last - first) or 0.001
    stretched = [min(max((i - first) / width, 0.0), 1.0) for i in range(len(plain))]
    frequencies = [
        frequency / factor * share + frequency * (1 - share)
        for frequency, share in zip(plain, stretched, strict=True)
    ]
    return frequencies, _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: RopeScaling, factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)


def _longrope(
    plain: list[float], config: ModelConfig, scaling: RopeScaling, max_seq_len: int
) -> tuple[list[float], float]:
    trained, factor = _trained_length(config, scaling), _factor(config, scaling)
    factors = scaling.long_factor if max_seq_len > trained else scaling.short_factor
    assert factors is not None, "RopeScaling checks this"
    amplitude = scaling.attention_factor
    if amplitude is None:
        amplitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return [value / stretch for value, stretch in zip(plain, factors, strict=True)], amplitude
