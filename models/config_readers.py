"""Reads a ModelConfig out of HF's config.json, Meta's params.json or GGUF metadata. No torch.

The dataclass itself is in config.py; tensors are read in checkpoints/.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config import ModelConfig, RopeScaling
from models.families import ROPE_KINDS, Family, family_of, family_of_gguf
from models.vision_config import vision_from_hf, vision_from_meta

if TYPE_CHECKING:
    from models.checkpoints.gguf_file import GgufFile

_HF_SIZES = {
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "vocab_size": "vocab_size",
}


def _read_json(
    source: Mapping[str, Any] | str | Path, file_name: str
) -> tuple[dict[str, Any], str]:
    """The content of a JSON file and a model name taken from its folder."""
    if isinstance(source, Mapping):
        return dict(source), str(source.get("_name_or_path") or "unnamed")
    path = Path(source)
    path = path / file_name if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, an object is needed")
    return content, name_from_directory(path.parent)


def name_from_directory(directory: Path) -> str:
    """The model's name: the folder's, or that of a hub cache's models--org--name/snapshots/hash."""
    directory = directory.absolute()
    if directory.parent.name == "snapshots" and directory.parent.parent.name.startswith("models--"):
        return directory.parent.parent.name.split("--")[-1]
    return directory.name


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(token) for token in (value if isinstance(value, list) else [value]))


def config_from_hf(
    source: Mapping[str, Any] | str | Path, name: str | None = None, *, vision: bool = False
) -> ModelConfig:
    """ModelConfig of an HF config.json (dict, file or directory); of its text stack alone, unless
    `vision` asks for images too.
    """
    hf, folder_name = _read_json(source, "config.json")
    name = name or folder_name
    architectures = hf.get("architectures") or []
    if not architectures:
        raise ValueError(f"{name}: config.json has no `architectures`, so the family is unknown")
    family = family_of(architectures[0])
    text = {**hf, **hf["text_config"]} if isinstance(hf.get("text_config"), dict) else hf
    missing = [key for key in _HF_SIZES.values() if text.get(key) is None]
    if missing:
        raise ValueError(f"{name}: config.json lacks {', '.join(missing)}")
    _refuse_unsupported(text, name)
    sizes = {ours: int(text[theirs]) for ours, theirs in _HF_SIZES.items()}
    sizes["num_layers"] -= len(text.get("cross_attention_layers") or [])
    max_positions = int(text.get("max_position_embeddings") or 2048)
    rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    theta = rope.get("rope_theta") or text.get("rope_theta") or 10000.0
    eos = _token_ids(text.get("eos_token_id"))
    if not isinstance(source, Mapping):
        eos = tuple(dict.fromkeys((*eos, *_generation_eos(Path(source)))))
    return ModelConfig(
        name=name,
        architecture=family.architecture,
        num_kv_heads=int(text.get("num_key_value_heads") or sizes["num_heads"]),
        head_dim=int(text.get("head_dim") or sizes["dim"] // sizes["num_heads"]),
        norm_eps=float(text.get("rms_norm_eps") or family.norm_eps_default),
        rope_theta=float(theta),
        rope_scaling=_rope_from_hf(rope, text, family, name),
        max_position_embeddings=max_positions,
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(text, family, name, max_positions),
        bos_token_ids=_token_ids(text.get("bos_token_id")),
        eos_token_ids=eos,
        vision=vision_from_hf(hf, name) if vision else None,
        **sizes,
    )


def _refuse_unsupported(text: Mapping[str, Any], name: str) -> None:
    """Say no to what would load but compute something else."""
    if text.get("quantization_config"):
        method = text["quantization_config"].get("quant_method", "some method")
        raise ValueError(
            f"{name}: weights quantised by {method} are not read: use the original or a GGUF file"
        )
    activation = text.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"{name}: hidden_act {activation!r} is not supported, only silu is")
    for key in ("mlp_bias", "attention_bias"):
        if text.get(key):
            raise ValueError(
                f"{name}: {key} is true; biases are supported on Qwen2's q, k and v only"
            )
    rope = text.get("rope_parameters") or {}
    partial = rope.get("partial_rotary_factor", text.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"{name}: partial_rotary_factor {partial} is not supported, only 1.0 is")


def _sliding_window(
    text: Mapping[str, Any], family: Family, name: str, max_positions: int
) -> int | None:
    window = text.get("sliding_window", family.sliding_window_default)
    switch = family.sliding_window_switch
    # A window that reaches over the whole context never clips.
    if not window or (switch and not text.get(switch, False)) or window >= max_positions:
        return None
    kinds = set(text.get("layer_types") or ["sliding_attention"])
    if switch and "layer_types" not in text:  # Qwen: the first max_window_layers see everything
        full = min(int(text.get("max_window_layers", 0)), int(text["num_hidden_layers"]))
        kinds = {"full_attention"} if full else set()
        kinds |= {"sliding_attention"} if full < int(text["num_hidden_layers"]) else set()
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        raise ValueError(f"{name}: layers that mix {', '.join(sorted(kinds))} are not supported")
    return int(window)


def _rope_from_hf(
    rope: Mapping[str, Any], text: Mapping[str, Any], family: Family, name: str
) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = {"su": "longrope"}.get(kind, kind)  # the name Phi-3's first release used
    if kind == "default":
        return None
    if kind not in family.rope_kinds:
        known = ", ".join(("default", *ROPE_KINDS))
        raise ValueError(f"{name}: rope kind {kind!r} is not supported: known are {known}")
    numbers = {
        key: rope[key]
        for key in RopeScaling.__dataclass_fields__
        if rope.get(key) is not None and key != "kind"
    }
    # Phi-3 keeps the trained length outside rope_scaling, and there it has priority.
    original = text.get("original_max_position_embeddings")
    original = original or numbers.get("original_max_position_embeddings")
    if kind != "linear":
        numbers["original_max_position_embeddings"] = int(
            original or text.get("max_position_embeddings") or 2048
        )
    for key in ("short_factor", "long_factor"):
        if key in numbers:
            numbers[key] = tuple(float(value) for value in numbers[key])
    return RopeScaling(kind=kind, **numbers)


def _generation_eos(path: Path) -> tuple[int, ...]:
    """Stop tokens that only generation_config.json names (chat models often list several)."""
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    if not file.is_file():
        return ()
    return _token_ids(_read_json(file, file.name)[0].get("eos_token_id"))


def _shortest(value: float) -> float:
    """GGUF numbers are float32: 9.99999975e-06 was 1e-05."""
    return float(f"{value:.7g}")


def config_from_meta(
    source: Mapping[str, Any] | str | Path, name: str | None = None, *, vision: bool = False
) -> ModelConfig:
    """ModelConfig of Meta's params.json (dict, file or directory); `vision` as above."""
    params, folder_name = _read_json(source, "params.json")
    name = name or folder_name
    missing = [key for key in ("dim", "n_layers", "n_heads", "vocab_size") if key not in params]
    if missing:
        raise ValueError(f"{name}: params.json lacks {', '.join(missing)}")
    if int(params["vocab_size"]) < 1:
        raise ValueError(
            f"{name}: params.json has vocab_size {params['vocab_size']} (Llama 2 style)"
        )
    dim, num_heads = int(params["dim"]), int(params["n_heads"])
    scaled = bool(params.get("use_scaled_rope", False))
    return ModelConfig(
        name=name,
        architecture="LlamaForCausalLM",
        dim=dim,
        num_layers=int(params["n_layers"]),
        num_heads=num_heads,
        num_kv_heads=int(params.get("n_kv_heads") or num_heads),
        head_dim=int(params.get("head_dim") or dim // num_heads),
        hidden_dim=_meta_hidden_dim(params, dim),
        vocab_size=int(params["vocab_size"]),
        norm_eps=float(params.get("norm_eps", 1e-5)),
        rope_theta=float(params.get("rope_theta", 500000.0)),
        rope_scaling=_meta_rope(params, dim) if scaled else None,
        max_position_embeddings=131072 if scaled else 8192,
        bos_token_ids=(128000,) if int(params["vocab_size"]) == 128256 else (),
        eos_token_ids=(128001, 128008, 128009) if int(params["vocab_size"]) == 128256 else (),
        vision=vision_from_meta(params, name) if vision else None,
    )


def _meta_hidden_dim(params: Mapping[str, Any], dim: int) -> int:
    """Meta states a multiplier and a rounding step instead of the MLP's width."""
    if "hidden_dim" in params:
        return int(params["hidden_dim"])
    hidden = int(2 * 4 * dim / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = int(params.get("multiple_of", 256))
    return multiple * -(-hidden // multiple)


def _meta_rope(params: Mapping[str, Any], dim: int) -> RopeScaling:
    # params.json only says "scaled": 3.1 and 3.3 stretch by 8, the small 3.2 models by 32.
    small_llama32 = dim < 4096
    return RopeScaling(
        kind="llama3",
        factor=float(params.get("rope_scaling_factor") or (32.0 if small_llama32 else 8.0)),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def config_from_gguf(path: str | Path, name: str | None = None) -> ModelConfig:
    """ModelConfig of a GGUF file's metadata."""
    from models.checkpoints.gguf_file import GgufFile

    with GgufFile(path) as file:
        architecture = file.field("general.architecture")
        family = family_of_gguf(architecture)

        def number(key: str, default: Any = None) -> Any:
            value = file.field(f"{architecture}.{key}", default)
            if value is None:
                raise ValueError(f"{path}: GGUF metadata lacks {architecture}.{key}")
            return value

        # general.name is free text; the file name is what people know a model by
        name = name or re.sub(r"[.-](I?Q\d\w*|B?F16|F32)$", "", Path(path).stem, flags=re.I)
        num_heads = int(number("attention.head_count"))
        dim = int(number("embedding_length"))
        max_positions = int(number("context_length"))
        window = int(number("attention.sliding_window", 0))
        return ModelConfig(
            name=name,
            architecture=family.architecture,
            dim=dim,
            num_layers=int(number("block_count")),
            num_heads=num_heads,
            num_kv_heads=int(number("attention.head_count_kv", num_heads)),
            head_dim=int(number("attention.key_length", 0)) or dim // num_heads,
            hidden_dim=int(number("feed_forward_length")),
            vocab_size=file.vocab_size(),
            norm_eps=_shortest(number("attention.layer_norm_rms_epsilon")),
            rope_theta=_shortest(number("rope.freq_base", 10000.0)),
            rope_scaling=_gguf_rope(file, architecture),
            max_position_embeddings=max_positions,
            tie_word_embeddings=not file.has_tensor("output.weight"),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            sliding_window=window if 0 < window < max_positions else None,
            bos_token_ids=_token_ids(file.field("tokenizer.ggml.bos_token_id", None)),
            eos_token_ids=_token_ids(file.field("tokenizer.ggml.eos_token_id", None)),
        )


def _gguf_rope(file: GgufFile, architecture: str) -> RopeScaling | None:
    """Llama 3 and Phi 3 store divisors per frequency as tensors, others name a kind."""
    prefix = f"{architecture}.rope.scaling."
    original = file.fields.get(prefix + "original_context_length")
    if file.has_tensor("rope_freqs.weight"):
        divisors = file.read("rope_freqs.weight").tolist()
        return _llama3_of(divisors, file.field(f"{architecture}.rope.freq_base", 10000.0))
    if file.has_tensor("rope_factors_long.weight"):
        return RopeScaling(
            kind="longrope",
            original_max_position_embeddings=original,
            attention_factor=file.fields.get(prefix + "attn_factor"),
            short_factor=tuple(file.read("rope_factors_short.weight").tolist()),
            long_factor=tuple(file.read("rope_factors_long.weight").tolist()),
        )
    kind = file.fields.get(prefix + "type", "none")
    if kind == "none":
        return None
    return RopeScaling(
        kind=kind,
        factor=file.fields.get(prefix + "factor"),
        original_max_position_embeddings=original,
    )


def _llama3_of(divisors: list[float], theta: float) -> RopeScaling:
    """The scaling whose divisors llama.cpp stored: Llama 3's factor is the largest of them.

    Divisors of any other rule are kept as they are, as a longrope without amplitude.
    """
    from models.rope_tables import llama3_frequency

    exact = tuple(divisors)
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
                kind="longrope", attention_factor=1.0, short_factor=exact, long_factor=exact
            )
    return llama3
