"""Tiny random models of every family, written as real model directories: weights and tokenizer.

`python -m tests.tiny_models --family qwen3 --out DIR` writes one that HF_MODEL can name. Sizes are
chosen to be awkward: odd head counts, widths and vocabularies that need padding, each its own rope.
tiny_formats.py writes the same weights as Meta and GGUF files.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.checkpoints.base import Checkpoint, expected_shapes
from models.checkpoints.export import export_tensors
from models.checkpoints.names import HF
from models.checkpoints.reference import hf_config
from models.checkpoints.vision_names import per_layout
from models.config import ModelConfig, RopeScaling
from models.families import family_of
from models.vision_config import VisionConfig
from runtime.codecs import LLAMA3_SPECIAL
from runtime.tokenizer_files import LLAMA3_TEMPLATE

BASE_VOCAB = 512  # tokens trained from the text below; special tokens follow
_TEXT = """\
The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of
times. A language model reads tokens and predicts the next one; a tiny one predicts nothing
useful, but it must do so with every bit of arithmetic that a large one needs. What is the capital
of France? Write a haiku about rivers. Explain how an engine works, step by step: 1, 2, 3, 4, 5,
6, 7, 8, 9, 10. Water falls as rain on hills and mountains, gathers in streams, and flows through
valleys to the sea. Farmers plant wheat in autumn, watch it grow in spring, and bring the harvest
home before winter comes. Light travels from the sun to the earth in about eight minutes; sound
would need fourteen years for it. def sort(numbers): return numbers if len(numbers) < 2 else
merge(sort(left), sort(right))
"""
_CHATML_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHATML_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _config(architecture: str, **facts: object) -> ModelConfig:
    flags = family_of(architecture)
    defaults: dict[str, object] = {
        "name": f"tiny-{flags.gguf_architecture}",
        "num_layers": 3,
        "vocab_size": 544,
        "max_position_embeddings": 4096,
        "qkv_bias": flags.qkv_bias,
        "qk_norm": flags.qk_norm,
        "bos_token_ids": (512,),
        "eos_token_ids": (512, 514),
    }
    return ModelConfig(architecture=architecture, **{**defaults, **facts})  # type: ignore[arg-type]


_PAIRS_96 = [1 + index / 8 for index in range(48)]
TINY = {
    "llama": _config(
        "LlamaForCausalLM",
        dim=288,
        num_heads=9,
        num_kv_heads=3,
        head_dim=32,
        hidden_dim=864,
        vocab_size=768,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(
            kind="llama3",
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        max_position_embeddings=131072,
        bos_token_ids=(512,),
        eos_token_ids=(513, 521),
    ),
    "llama-linear": _config(
        "LlamaForCausalLM",
        name="tiny-llama-linear",
        dim=160,
        num_heads=5,
        num_kv_heads=1,
        head_dim=32,
        hidden_dim=416,
        vocab_size=768,
        rope_scaling=RopeScaling(kind="linear", factor=4.0),
        tie_word_embeddings=True,
        bos_token_ids=(512,),
        eos_token_ids=(513, 521),
    ),
    "qwen2": _config(
        "Qwen2ForCausalLM",
        dim=448,
        num_heads=14,
        num_kv_heads=2,
        head_dim=32,
        hidden_dim=608,
        norm_eps=1e-6,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
    ),
    "qwen3": _config(
        "Qwen3ForCausalLM",
        dim=320,
        num_heads=10,
        num_kv_heads=5,
        head_dim=64,
        hidden_dim=672,
        norm_eps=1e-6,
        rope_theta=1000000.0,
        rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=1024),
    ),
    "mistral": _config(
        "MistralForCausalLM",
        dim=384,
        num_heads=6,
        num_kv_heads=2,
        head_dim=64,
        hidden_dim=736,
        sliding_window=160,
    ),
    "phi3": _config(
        "Phi3ForCausalLM",
        dim=480,
        num_heads=5,
        num_kv_heads=5,
        head_dim=96,
        hidden_dim=544,
        rope_scaling=RopeScaling(
            kind="longrope",
            original_max_position_embeddings=256,
            short_factor=tuple(1 + (value - 1) / 10 for value in _PAIRS_96),
            long_factor=tuple(_PAIRS_96),
        ),
    ),
}

# the image side's facts are in every test of tests/model/vision; the text stack is a Llama's
VISION = VisionConfig(
    dim=160,  # two heads of 80, which the device pads to 96
    num_heads=2,
    hidden_dim=640,
    num_layers=2,
    num_global_layers=2,
    intermediate_layers=(0, 1),
    image_size=56,
    patch_size=14,  # 17 tokens a tile: 24 with those that the encoder adds, 32 on the device
    max_tiles=2,
    ratios=((1, 1), (1, 2), (2, 1)),
    cross_before=(1, 3),
    image_token=768,
)
TINY_VISION = {
    "mllama": _config(
        "LlamaForCausalLM",
        name="tiny-mllama",
        dim=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        hidden_dim=512,
        vocab_size=768,
        rope_theta=500000.0,
        max_position_embeddings=8192,
        bos_token_ids=(512,),
        eos_token_ids=(513, 521),
        vision=VISION,
    )
}
_TABLES = ("vision.tile_positions", "vision.pre_tile.embedding", "vision.post_tile.embedding")


class TinyCheckpoint:
    """Random bfloat16 weights scaled so that attention and MLP matter in every layer."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self._seed = seed
        self._shapes = expected_shapes(config)
        self.fingerprint = f"tiny-{seed}-{config.digest}"
        self.as_grids = False  # tables of tile layouts as Meta stores them

    def names(self) -> list[str]:
        """Every canonical name."""
        return list(self._shapes)

    def get(self, name: str) -> torch.Tensor:
        """One tensor: norms near 1, matrices that keep the size of what they multiply."""
        shape = self._shapes[name]
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            name = "embed.weight"
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        vision = self.config.vision
        if vision is not None and name.startswith(_TABLES):
            tokens = shape[-1] // vision.max_tiles // vision.dim
            grid = torch.randn((vision.max_tiles,) * 2 + (tokens, vision.dim), generator=generator)
            grid = (0.5 * grid).bfloat16()
            return grid if self.as_grids else per_layout(grid, vision)
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            return (1 + 0.1 * noise).bfloat16()
        if name.endswith("gate"):
            return torch.full(shape, 0.7).bfloat16()
        wide = name.endswith(".bias") or name.startswith(("vision.positions", "vision.class"))
        return (noise * (0.5 if wide else shape[-1] ** -0.5)).bfloat16()

    def close(self) -> None:
        """Nothing to let go of."""


def tiny_config(family: str, *, num_layers: int | None = None) -> ModelConfig:
    """Config of a tiny model; an unknown family answers with the known ones."""
    known = TINY | TINY_VISION
    if family not in known:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(known)}")
    config = known[family]
    return dataclasses.replace(config, num_layers=num_layers) if num_layers else config


@functools.cache
def base_tokenizer() -> Tokenizer:
    """A byte-level BPE of 512 tokens, trained on a few lines of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCAB,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    assert tokenizer.get_vocab_size() == BASE_VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def special_tokens(config: ModelConfig) -> list[str]:
    """Tokens 512 and up: Llama 3's 256 (and the image's), or ChatML's three."""
    if config.architecture != "LlamaForCausalLM":
        return _CHATML_SPECIAL
    return [*LLAMA3_SPECIAL, *(["<|image|>"] if config.vision else [])]


def chat_template(config: ModelConfig) -> str:
    """The Jinja template an instruct model of this family carries."""
    return LLAMA3_TEMPLATE if config.architecture == "LlamaForCausalLM" else _CHATML_TEMPLATE


def write_tokenizer(config: ModelConfig, directory: Path, *, instruct: bool = True) -> None:
    """tokenizer.json and its configs; a base model has no chat template."""
    special = special_tokens(config)
    tokenizer = Tokenizer.from_str(base_tokenizer().to_str())
    tokenizer.add_special_tokens(special)
    end = config.eos_token_ids[-1]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[config.bos_token_ids[0] - BASE_VOCAB],
        eos_token=special[end - BASE_VOCAB],
        pad_token=special[config.eos_token_ids[0] - BASE_VOCAB],
    )
    if instruct:
        fast.chat_template = chat_template(config)
    fast.save_pretrained(directory)


def write_safetensors(checkpoint: Checkpoint, directory: Path, *, shards: int = 1) -> None:
    """model.safetensors, or shards and their index, with HF's names and row order."""
    tensors = dict(export_tensors(checkpoint, HF, half_order=True))
    if checkpoint.config.vision is not None:
        text = ("model.", "lm_head.")
        tensors = {
            f"language_model.{n}" if n.startswith(text) else n: t for n, t in tensors.items()
        }
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_hf(
    checkpoint: Checkpoint, directory: str | Path, *, shards: int = 1, instruct: bool = True
) -> Path:
    """A whole HF model directory of a checkpoint's weights."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = hf_config(checkpoint.config)
    config.dtype = torch.bfloat16
    config.save_pretrained(directory)
    write_safetensors(checkpoint, directory, shards=shards)
    write_tokenizer(checkpoint.config, directory, instruct=instruct)
    return directory


def write_tiny(family: str, directory: str | Path, *, seed: int = 0, shards: int = 1) -> Path:
    """A tiny random model of a family as an HF directory."""
    return write_hf(TinyCheckpoint(tiny_config(family), seed), directory, shards=shards)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", required=True, choices=list(TINY | TINY_VISION))
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--format", choices=("hf", "meta", "gguf"), default="hf")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--base", action="store_true", help="no chat template")
    arguments = parser.parse_args()
    config = tiny_config(arguments.family, num_layers=arguments.layers)
    checkpoint = TinyCheckpoint(config, arguments.seed)
    if arguments.format == "hf":
        written = write_hf(
            checkpoint, arguments.out, shards=arguments.shards, instruct=not arguments.base
        )
    else:
        from tests.tiny_formats import write_gguf, write_meta

        written = (
            write_meta(checkpoint, arguments.out, shards=arguments.shards)
            if arguments.format == "meta"
            else write_gguf(checkpoint, arguments.out / f"{config.name}.gguf")
        )
    print(written)


if __name__ == "__main__":
    main()
