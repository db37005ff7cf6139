"""A checkpoint's weights written as Meta's .pth files and as GGUF, to read them back in tests."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize

from models.checkpoints.base import Checkpoint
from models.checkpoints.export import export_tensors
from models.checkpoints.names import GGUF, META
from models.config import ModelConfig
from models.rope_tables import rope_frequencies
from tests.tiny_models import (
    BASE_VOCAB,
    TinyCheckpoint,
    base_tokenizer,
    chat_template,
    special_tokens,
)

# Meta cuts these along the columns, norms are copied, all others are cut along the rows.
_BY_COLUMNS = (
    "attention.wo.weight", "feed_forward.w2.weight", "attn.wo.weight", "mlp.c_proj.weight",
)  # fmt: skip


def meta_params(config: ModelConfig) -> dict[str, object]:
    """params.json of a Llama; Meta states a multiplier instead of the MLP's width."""
    scaling = config.rope_scaling
    params: dict[str, object] = {
        "dim": config.dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": config.hidden_dim / int(8 * config.dim / 3),
        "multiple_of": 32,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": scaling is not None,
    }
    if scaling is not None:
        params["rope_scaling_factor"] = scaling.factor
    v = config.vision
    if v is not None:
        params |= {
            "vision_chunk_size": v.image_size,
            "vision_max_num_chunks": v.max_tiles,
            "vision_num_cross_attention_layers": len(v.cross_before),
            "vision_dim": v.dim,
            "vision_n_heads": v.num_heads,
            "vision_hidden_dim": v.hidden_dim,
            "vision_n_layers": v.num_layers,
            "vision_n_global_layers": v.num_global_layers,
            "vision_return_layers": list(v.intermediate_layers),
        }
    return params


def write_meta(checkpoint: Checkpoint, directory: str | Path, *, shards: int = 1) -> Path:
    """consolidated.NN.pth, params.json and tokenizer.model."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    vision = checkpoint.config.vision is not None
    if isinstance(checkpoint, TinyCheckpoint):
        checkpoint.as_grids = True
    for name, tensor in export_tensors(checkpoint, META, half_order=False):
        dim = 1 if name.endswith(_BY_COLUMNS) else 0
        copied = tensor.dim() == 4 or "positional" in name
        copied |= tensor.dim() == 1 and not name.endswith("c_fc.bias")
        if not copied and tensor.shape[dim] % shards:
            raise ValueError(f"{shards} shards do not divide {name} {list(tensor.shape)}")
        parts = [tensor] * shards if copied else tensor.chunk(shards, dim)
        if vision and not name.startswith("vision_model."):
            name = f"text_model.{name}"
        for file, part in zip(files, parts, strict=True):
            file[name] = part.contiguous().clone()
    for rank, file in enumerate(files):
        torch.save(file, directory / f"consolidated.{rank:02d}.pth")
    (directory / "params.json").write_text(json.dumps(meta_params(checkpoint.config)))
    write_tiktoken(directory / "tokenizer.model")
    return directory


def write_tiktoken(path: Path) -> None:
    """The base vocabulary as tiktoken ranks: one base64 token and its rank a line."""
    byte_of = {char: byte for byte, char in gguf_byte_alphabet().items()}
    vocabulary = base_tokenizer().get_vocab()
    lines = []
    for token, rank in sorted(vocabulary.items(), key=lambda item: item[1]):
        raw = bytes(byte_of[char] for char in token)
        lines.append(f"{base64.b64encode(raw).decode()} {rank}")
    path.write_text("\n".join(lines) + "\n")


def gguf_byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level BPE shows for each byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {byte: chr(byte) for byte in shown}
    return alphabet | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


def write_gguf(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F16,
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
    tensors_per_part: int = 0,
) -> Path:
    """One GGUF file: matrices as `kind` (by `encode` if gguf cannot write it), norms float32.

    With `tensors_per_part` it is split as llama.cpp does; `path` is then the name without numbers.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config
    writer = gguf.GGUFWriter(
        path, config.family.gguf_architecture, split_max_tensors=tensors_per_part
    )
    _write_facts(writer, config)
    _write_vocabulary(writer, config)
    half_order = not config.family.gguf_pair_order
    for name, tensor in export_tensors(checkpoint, GGUF, half_order=half_order):
        values = tensor.float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
        elif encode is not None:
            writer.add_tensor(name, encode(values), raw_dtype=kind)
        else:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_facts(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_name(config.name)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    scaling = config.rope_scaling
    if scaling is None:
        return
    if scaling.kind == "llama3":  # llama.cpp stores the divisors themselves
        stretched, _ = rope_frequencies(config, config.max_position_embeddings)
        exponents = np.arange(config.head_dim // 2) / (config.head_dim // 2)
        divisors = config.rope_theta**-exponents / np.array(stretched)
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
        return
    if scaling.kind == "longrope":
        for word, factors in (("long", scaling.long_factor), ("short", scaling.short_factor)):
            writer.add_tensor(f"rope_factors_{word}.weight", np.array(factors, np.float32))
    else:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor or 1.0)
    if scaling.original_max_position_embeddings:
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)


def _write_vocabulary(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    model = json.loads(base_tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = special_tokens(config)
    unused = config.vocab_size - BASE_VOCAB - len(special)
    tokens += special + [f"<|unused_{index}|>" for index in range(unused)]
    kinds = [gguf.TokenType.NORMAL] * BASE_VOCAB + [gguf.TokenType.CONTROL] * len(special)
    kinds += [gguf.TokenType.UNUSED] * unused
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(config.bos_token_ids[0])
    writer.add_eos_token_id(config.eos_token_ids[-1])
    writer.add_chat_template(chat_template(config))


def raw_gguf(fields: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], int, int]]) -> bytes:
    """The header of a file with any values at all; `tensors` are (name, shape, type, offset)."""

    def text(value: str) -> bytes:
        encoded = value.encode("utf-8", "replace")
        return struct.pack("<Q", len(encoded)) + encoded

    def typed(value: Any) -> tuple[int, bytes]:
        if isinstance(value, bool):
            return 7, struct.pack("<?", value)
        if isinstance(value, int):
            kind, code = (10, "<Q") if value >= 0 else (11, "<q")
            return kind, struct.pack(code, value)
        if isinstance(value, float):
            return 12, struct.pack("<d", value)
        if isinstance(value, str):
            return 8, text(value)
        items = [typed(item) for item in value]
        kind = items[0][0] if items else 4
        return 9, struct.pack("<IQ", kind, len(items)) + b"".join(body for _, body in items)

    body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for key, value in fields.items():
        kind, encoded = typed(value)
        body += text(key) + struct.pack("<I", kind) + encoded
    for name, shape, number, offset in tensors:
        body += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        body += struct.pack("<IQ", number, offset)
    return body
