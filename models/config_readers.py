"""Reads a ModelConfig out of HF's config.json, Meta's params.json or GGUF metadata. No torch.

The dataclass itself is in config.py; tensors are read in checkpoints/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config import NUMBERS, SIZES, ModelConfig, RopeScaling
from models.families import ROPE_KINDS, Family, family_of, family_of_gguf
from models.fields import Fields, read_object, shown
from models.vision_config import VisionConfig
from models.vision_readers import vision_from_hf, vision_from_meta, with_preprocessor

if TYPE_CHECKING:
    from models.checkpoints.gguf_file import GgufFile

_HF_SIZES = {
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}
# keys whose null is not a default but says "none", or "as many as there are heads"
_NULLABLE = ("num_key_value_heads", "head_dim", "sliding_window", "bos_token_id", "eos_token_id")
_ROPE_NUMBERS = {
    "factor": (1e-3, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
    "mscale": (0.0, 1e6),
    "mscale_all_dim": (0.0, 1e6),
    "attention_factor": (1e-6, 1e6),
}


def _read_json(
    source: Mapping[str, Any] | str | Path, file_name: str
) -> tuple[dict[str, Any], str]:
    """The content of a JSON file and a model name taken from its folder."""
    if isinstance(source, Mapping):
        return dict(source), str(source.get("_name_or_path") or "unnamed")
    path = Path(source)
    path = path / file_name if path.is_dir() else path
    return read_object(path), name_from_directory(path.parent)


def name_from_directory(directory: Path) -> str:
    """The model's name: the folder's, or that of a hub cache's models--org--name/snapshots/hash."""
    directory = directory.absolute()
    if directory.parent.name == "snapshots" and directory.parent.parent.name.startswith("models--"):
        return directory.parent.parent.name.split("--")[-1]
    return directory.name


def config_from_hf(
    source: Mapping[str, Any] | str | Path, name: str | None = None, *, vision: bool = False
) -> ModelConfig:
    """ModelConfig of an HF config.json (dict, file or directory); what it lacks is as in HF.

    Of its text stack alone, unless `vision` asks for images too.
    """
    hf, folder_name = _read_json(source, "config.json")
    name = name or folder_name
    architectures = Fields(hf, f"{name}: config.json").strings("architectures")
    if not architectures:
        raise ValueError(f"{name}: config.json has no `architectures`, so the family is unknown")
    family = family_of(architectures[0])
    text = _with_defaults(hf, family, architectures[0], name)
    _refuse_unsupported(text, family, name)
    sizes = {ours: text.integer(theirs, *SIZES[ours]) for ours, theirs in _HF_SIZES.items()}
    heads_width = max(1, sizes["dim"] // sizes["num_heads"])
    sizes["num_kv_heads"] = text.integer(
        "num_key_value_heads", *SIZES["num_kv_heads"], sizes["num_heads"]
    )
    sizes["head_dim"] = text.integer("head_dim", *SIZES["head_dim"], heads_width)
    skipped = text.whole_numbers("cross_attention_layers", 0, sizes["num_layers"] - 1)
    window = _sliding_window(text, family, name, sizes["num_layers"])
    sizes["num_layers"] -= len(set(skipped))
    rope = _rope_table(text)
    theta = text.number("rope_theta", *NUMBERS["rope_theta"], 10000.0)
    eos = _own_tokens(text, hf, "eos_token_id", sizes["vocab_size"])
    if not isinstance(source, Mapping):
        eos = tuple(dict.fromkeys((*eos, *_generation_eos(Path(source), sizes["vocab_size"]))))
    return ModelConfig(
        name=name,
        architecture=family.architecture,
        norm_eps=text.number("rms_norm_eps", *NUMBERS["norm_eps"]),
        rope_theta=rope.number("rope_theta", *NUMBERS["rope_theta"], theta),
        rope_scaling=_rope_from_hf(rope, text, family, name),
        tie_word_embeddings=text.flag("tie_word_embeddings"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window=window,
        bos_token_ids=_own_tokens(text, hf, "bos_token_id", sizes["vocab_size"]),
        eos_token_ids=eos,
        vision=_vision(hf, source, name) if vision else None,
        **sizes,
    )


def _vision(
    hf: Mapping[str, Any], source: Mapping[str, Any] | str | Path, name: str
) -> VisionConfig:
    """The image side, with what the directory says of pixels."""
    found = vision_from_hf(hf, name)
    if isinstance(source, Mapping):
        return found
    path = Path(source)
    return with_preprocessor(found, path if path.is_dir() else path.parent)


def _with_defaults(hf: Mapping[str, Any], family: Family, architecture: str, name: str) -> Fields:
    """The text model's values; null stands for a default, save where HF takes it as "none"."""
    text = {**hf, **Fields(hf, f"{name}: config.json").table("text_config").values}
    given = {key: value for key, value in text.items() if value is not None or key in _NULLABLE}
    wrapper = family.text_stack_of.get(architecture, {})
    return Fields({**family.defaults, **wrapper, **given}, f"{name}: config.json")


def _own_tokens(text: Fields, hf: Mapping[str, Any], key: str, vocab_size: int) -> tuple[int, ...]:
    """Token ids; one that only the class assumes counts if the vocabulary has it."""
    tokens = text.whole_numbers(key, 0, 2**31)
    is_given = key in hf or key in (hf.get("text_config") or {})
    return tokens if is_given else tuple(t for t in tokens if t < vocab_size)


def _refuse_unsupported(text: Fields, family: Family, name: str) -> None:
    """Say no to what would load but compute something else."""
    quantised = text.table("quantization_config")
    if quantised.values:
        method = quantised.text("quant_method", "some method")
        raise ValueError(
            f"{name}: weights quantised by {method} are not read: use the original or a GGUF file"
        )
    activation = text.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"{name}: hidden_act {activation!r} is not supported, only silu is")
    for key in family.bias_keys:
        if text.flag(key):
            raise ValueError(
                f"{name}: {key} is true; biases are supported on Qwen2's q, k and v only"
            )
    partial = _rope_table(text).values.get("partial_rotary_factor")
    partial = text.values.get("partial_rotary_factor") if partial is None else partial
    if partial not in (None, 1, 1.0):
        raise ValueError(
            f"{name}: partial_rotary_factor {shown(partial)} is not supported, only 1.0 is"
        )


def _sliding_window(text: Fields, family: Family, name: str, num_layers: int) -> int | None:
    switch = family.sliding_window_switch
    if not family.has_sliding_window or (switch and not text.flag(switch)):
        return None
    window = text.integer("sliding_window", 0, 2**31, None)
    # A window that reaches over the whole context never clips.
    if not window or window >= text.integer("max_position_embeddings", 1, 2**31):
        return None
    if switch:  # Qwen: without a list, the first max_window_layers see everything
        full = min(text.integer("max_window_layers", 0, 2**31), num_layers)
        rest = num_layers - full
        listed = text.strings("layer_types")
        kinds = set(listed or ["full_attention"] * full + ["sliding_attention"] * rest)
        if kinds == {"full_attention"}:
            return None
        if kinds != {"sliding_attention"}:
            mixed = ", ".join(sorted(kinds))[:80]
            raise ValueError(f"{name}: layers that mix {mixed} are not supported")
    return window


def _rope_table(text: Fields) -> Fields:
    """The numbers of the rotary positions, in the old spelling or the new one."""
    old, new = text.table("rope_scaling"), text.table("rope_parameters")
    return Fields({**old.values, **new.values}, old.where if old.values else new.where)


def _rope_from_hf(rope: Fields, text: Fields, family: Family, name: str) -> RopeScaling | None:
    kind = rope.text("rope_type", None) or rope.text("type", "default")
    if kind == "su" or (kind == "yarn" and family.gguf_architecture == "phi3"):
        kind = "longrope"  # the names Phi-3's first releases used
    if kind == "default":
        return None
    if kind not in family.rope_kinds:
        known = ", ".join(("default", *ROPE_KINDS))
        raise ValueError(f"{name}: rope kind {shown(kind)} is not supported: known are {known}")
    numbers: dict[str, Any] = {
        key: rope.number(key, *bounds, None) for key, bounds in _ROPE_NUMBERS.items()
    }
    for key in ("short_factor", "long_factor"):
        numbers[key] = rope.numbers(key, 1e-6, 1e6)
    # Phi-3 keeps the trained length outside rope_scaling, and there it has priority.
    inside = rope.integer("original_max_position_embeddings", 2, 2**31, None)
    original = text.integer("original_max_position_embeddings", 2, 2**31, None)
    if kind != "linear":
        original = original or inside or text.integer("max_position_embeddings", 2, 2**31)
    try:
        return RopeScaling(
            kind=kind,
            original_max_position_embeddings=original or inside,
            truncate=rope.flag("truncate", True),
            **numbers,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _generation_eos(path: Path, vocab_size: int) -> tuple[int, ...]:
    """Stop tokens that only generation_config.json names (chat models often list several)."""
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    if not file.is_file():
        return ()
    fields = Fields(read_object(file), str(file))
    return fields.whole_numbers("eos_token_id", 0, vocab_size - 1)


def _shortest(value: float) -> float:
    """GGUF numbers are float32: 9.99999975e-06 was 1e-05."""
    return float(f"{value:.7g}")


def config_from_meta(
    source: Mapping[str, Any] | str | Path, name: str | None = None, *, vision: bool = False
) -> ModelConfig:
    """ModelConfig of Meta's params.json (dict, file or directory); `vision` as above."""
    content, folder_name = _read_json(source, "params.json")
    name = name or folder_name
    params = Fields(content, f"{name}: params.json")
    if content.get("vocab_size") == -1:
        raise ValueError(f"{name}: params.json has vocab_size -1 (Llama 2 style)")
    dim, num_heads, vocab_size, num_layers = (
        params.integer(theirs, *SIZES[ours])
        for theirs, ours in (
            ("dim", "dim"),
            ("n_heads", "num_heads"),
            ("vocab_size", "vocab_size"),
            ("n_layers", "num_layers"),
        )
    )
    scaled, is_llama3 = params.flag("use_scaled_rope"), vocab_size == 128256
    return ModelConfig(
        name=name,
        architecture="LlamaForCausalLM",
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=params.integer("n_kv_heads", *SIZES["num_kv_heads"], num_heads),
        head_dim=params.integer("head_dim", *SIZES["head_dim"], max(1, dim // num_heads)),
        hidden_dim=_meta_hidden_dim(params, dim),
        vocab_size=vocab_size,
        norm_eps=params.number("norm_eps", *NUMBERS["norm_eps"], 1e-5),
        rope_theta=params.number("rope_theta", *NUMBERS["rope_theta"], 500000.0),
        rope_scaling=_meta_rope(params, dim) if scaled else None,
        max_position_embeddings=131072 if scaled else 8192,
        bos_token_ids=(128000,) if is_llama3 else (),
        eos_token_ids=(128001, 128008, 128009) if is_llama3 else (),
        vision=vision_from_meta(content, name) if vision else None,
    )


def _meta_hidden_dim(params: Fields, dim: int) -> int:
    """Meta states a multiplier and a rounding step instead of the MLP's width."""
    if "hidden_dim" in params:
        return params.integer("hidden_dim", *SIZES["hidden_dim"])
    hidden = int(2 * 4 * dim / 3)
    hidden = int(params.number("ffn_dim_multiplier", 1e-3, 1e3, 1.0) * hidden)
    multiple = params.integer("multiple_of", 1, 2**20, 256)
    return multiple * -(-hidden // multiple)


def _meta_rope(params: Fields, dim: int) -> RopeScaling:
    # params.json only says "scaled": 3.1 and 3.3 stretch by 8, the small 3.2 models by 32.
    small_llama32 = dim < 4096
    return RopeScaling(
        kind="llama3",
        factor=params.number("rope_scaling_factor", 1e-3, 1e6, 32.0 if small_llama32 else 8.0),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def config_from_gguf(path: str | Path, name: str | None = None) -> ModelConfig:
    """ModelConfig of a GGUF file's metadata."""
    from models.checkpoints.gguf_file import GgufFile

    with GgufFile(path) as file:
        architecture = file.metadata.text("general.architecture")
        family = family_of_gguf(architecture)
        # only this architecture's keys, without its name in front
        own = file.metadata.below(f"{architecture}.")
        # general.name is free text; the file name is what people know a model by
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", Path(path).stem)
        name = name or re.sub(r"[.-](I?Q\d\w*|B?F16|F32)$", "", stem, flags=re.I)
        num_heads = own.integer("attention.head_count", *SIZES["num_heads"])
        dim = own.integer("embedding_length", *SIZES["dim"])
        max_positions = own.integer("context_length", *SIZES["max_position_embeddings"])
        window = own.integer("attention.sliding_window", 0, 2**32, 0)
        epsilon = own.number("attention.layer_norm_rms_epsilon", *NUMBERS["norm_eps"])
        vocab_size, tokens = file.vocab_size(), file.metadata.below("tokenizer.ggml.")
        bos, eos = (
            tokens.whole_numbers(f"{end}_token_id", 0, vocab_size - 1) for end in ("bos", "eos")
        )
        return ModelConfig(
            name=name,
            architecture=family.architecture,
            dim=dim,
            num_layers=own.integer("block_count", *SIZES["num_layers"]),
            num_heads=num_heads,
            num_kv_heads=own.integer("attention.head_count_kv", *SIZES["num_kv_heads"], num_heads),
            head_dim=own.integer(
                "attention.key_length", *SIZES["head_dim"], max(1, dim // num_heads)
            ),
            hidden_dim=own.integer("feed_forward_length", *SIZES["hidden_dim"]),
            vocab_size=vocab_size,
            norm_eps=_shortest(epsilon),
            rope_theta=_shortest(own.number("rope.freq_base", *NUMBERS["rope_theta"], 10000.0)),
            rope_scaling=_gguf_rope(file, own),
            max_position_embeddings=max_positions,
            tie_word_embeddings=not file.has_tensor("output.weight"),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            sliding_window=window if 0 < window < max_positions else None,
            bos_token_ids=bos,
            eos_token_ids=eos,
        )


def _gguf_rope(file: GgufFile, own: Fields) -> RopeScaling | None:
    """Llama 3 and Phi 3 store divisors per frequency as tensors, others name a kind."""
    scaling = own.below("rope.scaling.")
    original = scaling.integer("original_context_length", 2, 2**31, None)
    theta = own.number("rope.freq_base", *NUMBERS["rope_theta"], 10000.0)
    if file.has_tensor("rope_freqs.weight"):
        return _llama3_of(_divisors(file, "rope_freqs.weight"), theta)
    if file.has_tensor("rope_factors_long.weight"):
        bounds = _ROPE_NUMBERS["attention_factor"]
        return RopeScaling(
            kind="longrope",
            original_max_position_embeddings=original,
            attention_factor=scaling.number("attn_factor", *bounds, None),
            short_factor=_divisors(file, "rope_factors_short.weight"),
            long_factor=_divisors(file, "rope_factors_long.weight"),
        )
    kind = scaling.text("type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise scaling.refuse("type", "none, linear or yarn")
    factor = scaling.number("factor", *_ROPE_NUMBERS["factor"], None)
    return RopeScaling(kind=kind, factor=factor, original_max_position_embeddings=original)


def _divisors(file: GgufFile, name: str) -> tuple[float, ...]:
    values = file.read(name).flatten().tolist() if file.has_tensor(name) else None
    found = Fields({name: values}, file.path).numbers(name, 1e-6, 1e6)
    if not found:
        raise ValueError(f"{file.path} lacks the numbers of {name}")
    return found


def _llama3_of(divisors: tuple[float, ...], theta: float) -> RopeScaling:
    """The scaling whose divisors llama.cpp stored: Llama 3's factor is the largest of them.

    Divisors of any other rule are kept as they are, as a longrope without amplitude.
    """
    from models.rope_tables import llama3_frequency

    llama3 = RopeScaling(
        kind="llama3",
        factor=max(divisors),
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    for index, divisor in enumerate(divisors):
        plain = theta ** (-index / len(divisors))
        if not math.isclose(plain / llama3_frequency(plain, llama3, 8192), divisor, rel_tol=1e-4):
            return RopeScaling(
                kind="longrope", attention_factor=1.0, short_factor=divisors, long_factor=divisors
            )
    return llama3
