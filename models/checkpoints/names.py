"""Weight names as data: canonical name <-> name in an HF, Meta or GGUF file, in both directions.

`find_sources` turns a file's list of names into one reading instruction per canonical name and
refuses anything missing or left over. The canonical names are in base.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from models.checkpoints.base import expected_shapes
from models.checkpoints.vision_names import HF_NAMES, META_NAMES, hf_shape, meta_shape
from models.config import ModelConfig

# Several canonical tensors stacked by rows in one stored tensor, in stacking order.
FUSED = {
    "attention.wqkv": ("attention.wq", "attention.wk", "attention.wv"),
    "mlp.w13": ("mlp.w1", "mlp.w3"),
}


@dataclass(frozen=True)
class NameScheme:
    """How one format names tensors; {i} is the layer. Suffixes .weight and .bias stay."""

    tensors: Mapping[str, str]
    prefixes: Mapping[str, str]  # spellings of wrappers, rewritten before anything is looked up
    ignored: tuple[str, ...]  # regular expressions of names that carry no weight we run
    vision: Mapping[str, str] = field(default_factory=dict)  # stems, or whole names
    image_side: tuple[str, ...] = ()  # ignored where a vision model runs on text alone
    # (canonical name, config, its shape) -> the shape in the file
    stored_shape: Callable[[str, ModelConfig, tuple[int, ...]], tuple[int, ...]] = (
        lambda name, config, shape: shape
    )


HF = NameScheme(
    tensors={
        "embed": "model.embed_tokens",
        "norm": "model.norm",
        "lm_head": "lm_head",
        "layers.{i}.attention_norm": "model.layers.{i}.input_layernorm",
        "layers.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
        "layers.{i}.attention.wq": "model.layers.{i}.self_attn.q_proj",
        "layers.{i}.attention.wk": "model.layers.{i}.self_attn.k_proj",
        "layers.{i}.attention.wv": "model.layers.{i}.self_attn.v_proj",
        "layers.{i}.attention.wqkv": "model.layers.{i}.self_attn.qkv_proj",
        "layers.{i}.attention.wo": "model.layers.{i}.self_attn.o_proj",
        "layers.{i}.attention.q_norm": "model.layers.{i}.self_attn.q_norm",
        "layers.{i}.attention.k_norm": "model.layers.{i}.self_attn.k_norm",
        "layers.{i}.mlp.w1": "model.layers.{i}.mlp.gate_proj",
        "layers.{i}.mlp.w2": "model.layers.{i}.mlp.down_proj",
        "layers.{i}.mlp.w3": "model.layers.{i}.mlp.up_proj",
        "layers.{i}.mlp.w13": "model.layers.{i}.mlp.gate_up_proj",
    },
    prefixes={
        "language_model.model.": "model.",
        "model.language_model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.vision_model.": "vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    ignored=(r".*rotary_emb\.inv_freq",),
    vision=HF_NAMES,
    image_side=(r"(model\.)?vision_(model|tower)\..*", r"multi_modal_projector\..*"),
    stored_shape=hf_shape,
)

META = NameScheme(
    tensors={
        "embed": "tok_embeddings",
        "norm": "norm",
        "lm_head": "output",
        "layers.{i}.attention_norm": "layers.{i}.attention_norm",
        "layers.{i}.ffn_norm": "layers.{i}.ffn_norm",
        "layers.{i}.attention.wq": "layers.{i}.attention.wq",
        "layers.{i}.attention.wk": "layers.{i}.attention.wk",
        "layers.{i}.attention.wv": "layers.{i}.attention.wv",
        "layers.{i}.attention.wo": "layers.{i}.attention.wo",
        "layers.{i}.mlp.w1": "layers.{i}.feed_forward.w1",
        "layers.{i}.mlp.w2": "layers.{i}.feed_forward.w2",
        "layers.{i}.mlp.w3": "layers.{i}.feed_forward.w3",
    },
    prefixes={"text_model.": ""},
    ignored=(r"rope\.freqs",),
    vision=META_NAMES,
    image_side=(
        r"vision_model\..*",
        r"cross_attention_layers\..*",
        r"learnable_embedding\..*",
    ),
    stored_shape=meta_shape,
)

GGUF = NameScheme(
    tensors={
        "embed": "token_embd",
        "norm": "output_norm",
        "lm_head": "output",
        "layers.{i}.attention_norm": "blk.{i}.attn_norm",
        "layers.{i}.ffn_norm": "blk.{i}.ffn_norm",
        "layers.{i}.attention.wq": "blk.{i}.attn_q",
        "layers.{i}.attention.wk": "blk.{i}.attn_k",
        "layers.{i}.attention.wv": "blk.{i}.attn_v",
        "layers.{i}.attention.wqkv": "blk.{i}.attn_qkv",
        "layers.{i}.attention.wo": "blk.{i}.attn_output",
        "layers.{i}.attention.q_norm": "blk.{i}.attn_q_norm",
        "layers.{i}.attention.k_norm": "blk.{i}.attn_k_norm",
        "layers.{i}.mlp.w1": "blk.{i}.ffn_gate",
        "layers.{i}.mlp.w2": "blk.{i}.ffn_down",
        "layers.{i}.mlp.w3": "blk.{i}.ffn_up",
        "layers.{i}.mlp.w13": "blk.{i}.ffn_up",  # phi3: twice as many rows
    },
    prefixes={},
    ignored=(r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight"),
)


@dataclass(frozen=True)
class Source:
    """Where one canonical tensor is: a stored name, the rows of it, and the heads to reorder."""

    name: str
    rows: tuple[int, int] | None = None  # None: all of them
    half_order_heads: int = (
        0  # >0: rows are HF's half order, this many heads to bring in pair order
    )


def canonical_to_stored(scheme: NameScheme, name: str, layer_number: int | None = None) -> str:
    """The stored name of a canonical one; `layer_number` is the layer's number in the file."""
    match = re.search(r"(?<=layers\.)\d+(?=\.)", name)
    template = name.replace(f"layers.{match[0]}.", "layers.{i}.", 1) if match else name
    index = match[0] if match and layer_number is None else layer_number
    if template in scheme.vision:
        return scheme.vision[template].format(i=index)
    stem, suffix = template.rsplit(".", 1)
    found = scheme.tensors[stem] if stem in scheme.tensors else scheme.vision[stem]
    return f"{found.format(i=index)}.{suffix}"


def number_in_file(
    name: str, config: ModelConfig, layer_numbers: Sequence[int] | None
) -> int | None:
    """The number that HF's files give a layer; None: our own. They count both kinds together."""
    match = re.match(r"(cross_)?layers\.(\d+)\.", name)
    if match is None or layer_numbers is None:
        return None
    index = int(match[2])
    if match[1] is None:
        return layer_numbers[index]
    assert config.vision is not None
    return config.vision.cross_before[index] + index


def normalised(scheme: NameScheme, stored: str) -> str:
    """A stored name without the wrapper some files put around the text model."""
    for prefix, replacement in scheme.prefixes.items():
        if stored.startswith(prefix):
            return replacement + stored[len(prefix) :]
    return stored


def fused_rows(config: ModelConfig, fused: str) -> list[tuple[str, tuple[int, int]]]:
    """(part, its rows) of a fused tensor. Head counts decide: thirds would be wrong with GQA."""
    sizes = {
        "attention.wq": config.q_dim,
        "attention.wk": config.kv_dim,
        "attention.wv": config.kv_dim,
        "mlp.w1": config.hidden_dim,
        "mlp.w3": config.hidden_dim,
    }
    rows, start = [], 0
    for part in FUSED[fused]:
        rows.append((part, (start, start + sizes[part])))
        start += sizes[part]
    return rows


def rotary_heads(config: ModelConfig, name: str) -> int:
    """How many heads' rows a rotation mixes in this tensor; 0 for all but q, k and their norms."""
    heads = {
        "attention.wq": config.num_heads,
        "attention.wk": config.num_kv_heads,
        "attention.q_norm": 1,
        "attention.k_norm": 1,
    }
    stem = re.sub(r"^layers\.\d+\.", "", name).rsplit(".", 1)[0]
    return heads.get(stem, 0)


def find_sources(
    config: ModelConfig,
    scheme: NameScheme,
    stored_shapes: Mapping[str, Sequence[int]],
    *,
    half_order: bool,
    layer_numbers: Sequence[int] | None = None,
    file: str,
) -> dict[str, Source]:
    """Canonical name -> Source for a file that holds `stored_shapes`.

    `half_order`: q/k rows are in HF's order. `layer_numbers`: the file's numbers of our layers,
    if they differ. Raises ValueError that names what is missing, left over or of wrong shape.
    """
    by_name = {normalised(scheme, stored): stored for stored in stored_shapes}
    sources: dict[str, Source] = {}
    missing, wrong = [], []
    for name, shape in expected_shapes(config).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            if "embed.weight" in sources:
                sources[name] = sources["embed.weight"]
            continue
        number = number_in_file(name, config, layer_numbers)
        stored, rows = _look_up(config, scheme, by_name, stored_shapes, name, number)
        if stored is None:
            missing.append(canonical_to_stored(scheme, name, number))
            continue
        found = list(stored_shapes[stored])
        is_table = name in ("embed.weight", "lm_head.weight")
        if is_table and layer_numbers and found[0] > shape[0]:
            rows = (0, shape[0])  # vision models append rows for image tokens
        if name == "image_embed.weight" and found[0] > shape[0]:
            rows = (config.vocab_size, config.vocab_size + shape[0])
        if rows is not None:
            found[0] = rows[1] - rows[0]
        if tuple(found) != scheme.stored_shape(name, config, shape):
            wrong.append(f"{stored} is {list(stored_shapes[stored])}, not {list(shape)}")
        heads = rotary_heads(config, name) if half_order else 0
        sources[name] = Source(stored, rows, heads)
    used = {source.name for source in sources.values()}
    left_over = _left_over(scheme, config, by_name, used, layer_numbers)
    _refuse(file, missing, wrong, left_over)
    return sources


def _look_up(
    config: ModelConfig,
    scheme: NameScheme,
    by_name: Mapping[str, str],
    stored_shapes: Mapping[str, Sequence[int]],
    name: str,
    number: int | None,
) -> tuple[str | None, tuple[int, int] | None]:
    """(stored name, rows of it): the fused tensor if the file has it, else the plain one."""
    plain = by_name.get(canonical_to_stored(scheme, name, number))
    part = re.match(r"(layers\.\d+\.)(.*)\.(weight|bias)$", name)
    if part is None:
        return plain, None
    for fused in FUSED:
        rows = dict(fused_rows(config, fused)).get(part[2])
        if rows is None or f"layers.{{i}}.{fused}" not in scheme.tensors:
            continue
        whole = by_name.get(canonical_to_stored(scheme, f"{part[1]}{fused}.{part[3]}", number))
        last = fused_rows(config, fused)[-1][1][1]
        # GGUF calls phi3's fused tensor "ffn_up" too: its rows tell it from a plain one
        if whole is not None and stored_shapes[whole][0] == last:
            return whole, rows
    return plain, None


def _left_over(
    scheme: NameScheme,
    config: ModelConfig,
    by_name: Mapping[str, str],
    used: Collection[str],
    layer_numbers: Sequence[int] | None,
) -> list[str]:
    ignored = [*scheme.ignored]
    if config.vision is None:
        ignored += scheme.image_side
    if layer_numbers and config.vision is None:  # the layers between look at images
        ours = "|".join(str(number) for number in layer_numbers)
        ignored.append(rf"model\.layers\.(?!(?:{ours})\.)\d+\..*")
    if config.tie_word_embeddings:
        ignored.append(re.escape(f"{scheme.tensors['lm_head']}.weight"))
    pattern = re.compile("|".join(f"(?:{entry})" for entry in ignored))
    return [
        stored
        for name, stored in by_name.items()
        if stored not in used and not pattern.fullmatch(name)
    ]


def _refuse(file: str, missing: list[str], wrong: list[str], left_over: list[str]) -> None:
    def some(names: list[str]) -> str:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return ", ".join(names[:5]) + more

    problems = []
    if missing:
        problems.append(f"lacks {some(missing)}")
    if wrong:
        problems.append(f"has wrong shapes: {some(wrong)}")
    if left_over:
        problems.append(f"has tensors this model does not use: {some(left_over)}")
    if problems:
        raise ValueError(f"{file} " + "; it ".join(problems))


def to_pair_order(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """HF's row order (first halves of all pairs, then second halves) to neighbours, per head."""
    split = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return split.transpose(1, 2).reshape(tensor.shape)


def to_half_order(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The inverse of `to_pair_order`."""
    split = tensor.reshape(num_heads, -1, 2, *tensor.shape[1:])
    return split.transpose(1, 2).reshape(tensor.shape)
