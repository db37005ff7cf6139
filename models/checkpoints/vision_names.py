"""Names and shapes of a vision model's image side, in HF's and Meta's files; names.py has the rest.

Tower and cross-attention know no rotary positions: their query and key rows are as stored. Tables
per layout of tiles are kept in HF's form, [layouts + 1, ...]; Meta's by rows and columns are cut
to it when read, which cannot be undone.
"""

from __future__ import annotations

import torch

from models.config import ModelConfig
from models.vision_config import VisionConfig

# stem or whole name -> the same in a file; {i} is the layer, as that file numbers it
HF_NAMES = {
    "image_embed": "model.embed_tokens",
    "vision.class_embedding": "vision_model.class_embedding",
    "vision.patches": "vision_model.patch_embedding",
    "vision.positions.embedding": "vision_model.gated_positional_embedding.embedding",
    "vision.positions.gate": "vision_model.gated_positional_embedding.gate",
    "vision.tile_positions": "vision_model.gated_positional_embedding.tile_embedding",
    "vision.pre_tile.embedding": "vision_model.pre_tile_positional_embedding.embedding",
    "vision.pre_tile.gate": "vision_model.pre_tile_positional_embedding.gate",
    "vision.post_tile.embedding": "vision_model.post_tile_positional_embedding.embedding",
    "vision.post_tile.gate": "vision_model.post_tile_positional_embedding.gate",
    "vision.pre_norm": "vision_model.layernorm_pre",
    "vision.post_norm": "vision_model.layernorm_post",
    **{
        f"vision.{ours}.{{i}}.{part}": f"vision_model.{theirs}.layers.{{i}}.{name}"
        for ours, theirs in (("layers", "transformer"), ("global_layers", "global_transformer"))
        for part, name in {
            "attention_norm": "input_layernorm",
            "attention.wq": "self_attn.q_proj",
            "attention.wk": "self_attn.k_proj",
            "attention.wv": "self_attn.v_proj",
            "attention.wo": "self_attn.o_proj",
            "mlp_norm": "post_attention_layernorm",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "attention_gate": "gate_attn",
            "mlp_gate": "gate_ffn",
        }.items()
    },
    "projector": "multi_modal_projector",
    "cross_layers.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "cross_layers.{i}.attention.wq": "model.layers.{i}.cross_attn.q_proj",
    "cross_layers.{i}.attention.wk": "model.layers.{i}.cross_attn.k_proj",
    "cross_layers.{i}.attention.wv": "model.layers.{i}.cross_attn.v_proj",
    "cross_layers.{i}.attention.wo": "model.layers.{i}.cross_attn.o_proj",
    "cross_layers.{i}.attention.q_norm": "model.layers.{i}.cross_attn.q_norm",
    "cross_layers.{i}.attention.k_norm": "model.layers.{i}.cross_attn.k_norm",
    "cross_layers.{i}.attention_gate": "model.layers.{i}.cross_attn_attn_gate",
    "cross_layers.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "cross_layers.{i}.mlp.w1": "model.layers.{i}.mlp.gate_proj",
    "cross_layers.{i}.mlp.w2": "model.layers.{i}.mlp.down_proj",
    "cross_layers.{i}.mlp.w3": "model.layers.{i}.mlp.up_proj",
    "cross_layers.{i}.mlp_gate": "model.layers.{i}.cross_attn_mlp_gate",
}
_ENCODER = "vision_model.vision_encoder"
META_NAMES = {
    "image_embed": "learnable_embedding",
    "vision.class_embedding": f"{_ENCODER}.class_embedding",
    "vision.patches": f"{_ENCODER}.conv1._linear",
    "vision.positions.embedding": f"{_ENCODER}.positional_embedding",
    "vision.positions.gate": f"{_ENCODER}.gated_positional_embedding_gate",
    "vision.tile_positions.weight": f"{_ENCODER}.gated_positional_embedding",
    "vision.pre_tile.embedding.weight": f"{_ENCODER}.pre_tile_pos_embed.embedding",
    "vision.pre_tile.gate": f"{_ENCODER}.pre_tile_pos_embed.gate",
    "vision.post_tile.embedding.weight": f"{_ENCODER}.post_tile_pos_embed.embedding",
    "vision.post_tile.gate": f"{_ENCODER}.post_tile_pos_embed.gate",
    "vision.pre_norm": f"{_ENCODER}.ln_pre",
    "vision.post_norm": f"{_ENCODER}.ln_post",
    **{
        f"vision.{ours}.{{i}}.{part}": f"{_ENCODER}.{theirs}.resblocks.{{i}}.{name}"
        for ours, theirs in (("layers", "transformer"), ("global_layers", "global_transformer"))
        for part, name in {
            "attention_norm": "ln_1",
            "attention.wq": "attn.wq",
            "attention.wk": "attn.wk",
            "attention.wv": "attn.wv",
            "attention.wo": "attn.wo",
            "mlp_norm": "ln_2",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
            "attention_gate": "gate_attn",
            "mlp_gate": "gate_ffn",
        }.items()
    },
    "projector": "vision_model.vision_projection",
    "cross_layers.{i}.attention_norm": "cross_attention_layers.{i}.attention_norm",
    "cross_layers.{i}.attention.wq": "cross_attention_layers.{i}.attention.wq",
    "cross_layers.{i}.attention.wk": "cross_attention_layers.{i}.attention.wk",
    "cross_layers.{i}.attention.wv": "cross_attention_layers.{i}.attention.wv",
    "cross_layers.{i}.attention.wo": "cross_attention_layers.{i}.attention.wo",
    "cross_layers.{i}.attention.q_norm": "cross_attention_layers.{i}.attention.q_norm",
    "cross_layers.{i}.attention.k_norm": "cross_attention_layers.{i}.attention.k_norm",
    "cross_layers.{i}.attention_gate": "cross_attention_layers.{i}.gate_attn",
    "cross_layers.{i}.ffn_norm": "cross_attention_layers.{i}.ffn_norm",
    "cross_layers.{i}.mlp.w1": "cross_attention_layers.{i}.feed_forward.w1",
    "cross_layers.{i}.mlp.w2": "cross_attention_layers.{i}.feed_forward.w2",
    "cross_layers.{i}.mlp.w3": "cross_attention_layers.{i}.feed_forward.w3",
    "cross_layers.{i}.mlp_gate": "cross_attention_layers.{i}.gate_ffwd",
}


def vision_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of what a vision model has beside its text stack."""
    v = config.vision
    if v is None:
        return {}
    layouts, dim = len(v.ratios) + 1, v.dim
    shapes: dict[str, tuple[int, ...]] = {
        "image_embed.weight": (v.embedding_rows, config.dim),
        "vision.patches.weight": (dim, v.patch_values),
        "vision.class_embedding": (dim,),
        "vision.positions.embedding": (v.tokens, dim),
        "vision.positions.gate": (1,),
        "vision.tile_positions.weight": (layouts, v.max_tiles * v.tokens * dim),
        "vision.pre_tile.embedding.weight": (layouts, v.max_tiles * dim),
        "vision.pre_tile.gate": (1,),
        "vision.post_tile.embedding.weight": (layouts, v.max_tiles * dim),
        "vision.post_tile.gate": (1,),
        **_norm("vision.pre_norm", dim),
        **_norm("vision.post_norm", dim),
    }
    for index in range(v.num_layers):
        shapes |= _block(f"vision.layers.{index}", v)
    for index in range(v.num_global_layers):
        name = f"vision.global_layers.{index}"
        shapes |= _block(name, v) | {f"{name}.attention_gate": (1,), f"{name}.mlp_gate": (1,)}
    shapes |= {"projector.weight": (config.dim, v.output_dim), "projector.bias": (config.dim,)}
    for number, before in enumerate(v.cross_before):
        if before < config.num_layers:
            shapes |= _cross_layer(f"cross_layers.{number}", config)
    return shapes


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _block(name: str, v: VisionConfig) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(f"{name}.attention_norm", v.dim),
        **{f"{name}.attention.{part}.weight": (v.dim, v.dim) for part in ("wq", "wk", "wv", "wo")},
        **_norm(f"{name}.mlp_norm", v.dim),
        f"{name}.mlp.fc1.weight": (v.hidden_dim, v.dim),
        f"{name}.mlp.fc1.bias": (v.hidden_dim,),
        f"{name}.mlp.fc2.weight": (v.dim, v.hidden_dim),
        f"{name}.mlp.fc2.bias": (v.dim,),
    }


def _cross_layer(name: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    dim, hidden = config.dim, config.hidden_dim
    return {
        f"{name}.attention_norm.weight": (dim,),
        f"{name}.attention.wq.weight": (config.q_dim, dim),
        f"{name}.attention.wk.weight": (config.kv_dim, dim),
        f"{name}.attention.wv.weight": (config.kv_dim, dim),
        f"{name}.attention.wo.weight": (dim, config.q_dim),
        f"{name}.attention.q_norm.weight": (config.head_dim,),
        f"{name}.attention.k_norm.weight": (config.head_dim,),
        f"{name}.attention_gate": (1,),
        f"{name}.ffn_norm.weight": (dim,),
        f"{name}.mlp.w1.weight": (hidden, dim),
        f"{name}.mlp.w2.weight": (dim, hidden),
        f"{name}.mlp.w3.weight": (hidden, dim),
        f"{name}.mlp_gate": (1,),
    }


def hf_shape(name: str, config: ModelConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What HF stores under a canonical name of that shape."""
    v = config.vision
    if v is not None and name == "vision.patches.weight":
        return (v.dim, v.channels, v.patch_size, v.patch_size)
    return shape


def meta_shape(name: str, config: ModelConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What Meta stores under a canonical name of that shape."""
    v = config.vision
    if v is None:
        return shape
    grid = (v.max_tiles, v.max_tiles)
    if name == "vision.tile_positions.weight":
        return (*grid, v.tokens, v.dim)
    if name in ("vision.pre_tile.embedding.weight", "vision.post_tile.embedding.weight"):
        return (*grid, 1, v.dim)
    return shape


def per_layout(grid: torch.Tensor, vision: VisionConfig) -> torch.Tensor:
    """Meta's table [rows, columns, tokens, width] as one row per layout of tiles."""
    _, _, tokens, width = grid.shape
    table = grid.new_zeros(len(vision.ratios) + 1, vision.max_tiles, tokens * width)
    for number, (rows, columns) in enumerate(vision.ratios, start=1):
        table[number, : rows * columns] = grid[:rows, :columns].reshape(rows * columns, -1)
    return table.flatten(1)
