"""Every format gives the same canonical weights, and HF's own loading agrees with ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from models.checkpoints import Checkpoint, RandomCheckpoint, expected_shapes, open_checkpoint
from models.checkpoints.base import get_rows
from models.checkpoints.file_checkpoint import MAPPED_BYTES_LIMIT, FileCheckpoint
from models.checkpoints.reference import build_reference, hf_reference
from models.config_readers import config_from_gguf
from models.registry import load_config
from models.rope_tables import rope_frequencies
from tests.tiny_formats import write_gguf, write_meta
from tests.tiny_models import TINY, TinyCheckpoint, tiny_config, write_hf

Quant = gguf.GGMLQuantizationType


def assert_equal_weights(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Same names, and bit for bit the same numbers."""
    assert ours.names() == theirs.names()
    for name in ours.names():
        assert torch.equal(ours.get(name).float(), theirs.get(name).float()), name


@pytest.fixture(scope="module", params=TINY)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TinyCheckpoint, Path]:
    """A tiny model of each family, and the HF directory it was written to, in two shards."""
    checkpoint = TinyCheckpoint(tiny_config(request.param, num_layers=2))
    return checkpoint, write_hf(checkpoint, tmp_path_factory.mktemp("hf"), shards=2)


def test_config_and_weights_read_back_as_they_were_written(
    family: tuple[TinyCheckpoint, Path],
) -> None:
    checkpoint, directory = family
    opened = open_checkpoint(directory)
    assert opened.config.digest == checkpoint.config.digest
    assert_equal_weights(opened, checkpoint)


def test_the_reference_model_equals_what_transformers_loads(
    family: tuple[TinyCheckpoint, Path],
) -> None:
    _, directory = family
    theirs = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = hf_reference(directory)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    tokens = torch.arange(3, 303)[None]  # past Mistral's window and Phi-3's trained length
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_query_and_key_rows_are_in_pair_order(family: tuple[TinyCheckpoint, Path]) -> None:
    _, directory = family
    checkpoint = open_checkpoint(directory)
    config = checkpoint.config
    attention = hf_reference(directory).model.layers[1].self_attn
    if config.family.fused_qkv:
        query, key, value = attention.qkv_proj.weight.split(
            [config.q_dim, config.kv_dim, config.kv_dim]
        )
    else:
        query, key, value = (getattr(attention, f"{n}_proj").weight for n in "qkv")
    half = config.head_dim // 2
    # HF turns row i together with row i + half; ours are the neighbours 2i and 2i + 1
    pairs = torch.stack([torch.arange(half), torch.arange(half) + half], dim=1).flatten()
    for name, stored, heads in (
        ("wq", query, config.num_heads),
        ("wk", key, config.num_kv_heads),
    ):
        rows = (torch.arange(heads)[:, None] * config.head_dim + pairs).flatten()
        ours = checkpoint.get(f"layers.1.attention.{name}.weight").float()
        assert torch.equal(ours, stored[rows])
    assert torch.equal(checkpoint.get("layers.1.attention.wv.weight").float(), value)


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_meta_files_give_exactly_the_weights_of_hf_files(tmp_path: Path, shards: int) -> None:
    config = dataclasses.replace(
        tiny_config("llama", num_layers=2), dim=256, num_heads=8, num_kv_heads=8
    )
    checkpoint = TinyCheckpoint(config)
    meta = open_checkpoint(write_meta(checkpoint, tmp_path / "meta", shards=shards))
    hf = open_checkpoint(write_hf(checkpoint, tmp_path / "hf"))
    assert meta.config.digest == hf.config.digest
    assert_equal_weights(meta, hf)


@pytest.mark.parametrize("rows", [(0, 5), (250, 260), (100, 700), (768, 768)])
def test_rows_of_sharded_meta_files_are_read_alone(tmp_path: Path, rows: tuple[int, int]) -> None:
    checkpoint = TinyCheckpoint(tiny_config("llama", num_layers=1))
    opened = open_checkpoint(write_meta(checkpoint, tmp_path, shards=3))
    # cut by rows, cut by columns
    for name in ("lm_head.weight", "layers.0.mlp.w3.weight", "layers.0.mlp.w2.weight"):
        expected = checkpoint.get(name)[slice(*rows)]
        assert torch.equal(get_rows(opened, name, *rows), expected)


def test_a_meta_checkpoint_without_output_weight_is_tied(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config("llama", num_layers=1), tie_word_embeddings=True)
    opened = open_checkpoint(write_meta(TinyCheckpoint(config), tmp_path))
    assert opened.config.tie_word_embeddings
    assert torch.equal(opened.get("lm_head.weight"), opened.get("embed.weight"))


def _random_blocks(kind: Quant) -> Callable[[np.ndarray], np.ndarray]:
    """Valid blocks of a kind the gguf library reads but cannot write: random bits, small scales."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    scales = {Quant.Q2_K: (80, 82), Quant.Q4_K: (0, 2), Quant.Q6_K: (208,)}[kind]

    def encode(values: np.ndarray) -> np.ndarray:
        random = np.random.default_rng(values.size)
        shape = (values.shape[0], values.shape[1] // 256, block_bytes)
        blocks = random.integers(0, 256, shape, dtype=np.uint8)
        for at in scales:
            blocks[..., at : at + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
        return blocks.reshape(values.shape[0], -1)

    return encode


@pytest.mark.parametrize(
    ("family_name", "kind"),
    [
        ("llama", Quant.F16),
        ("llama", Quant.BF16),
        ("llama", Quant.Q8_0),
        ("llama-linear", Quant.F16),
        ("qwen2", Quant.Q4_0),
        ("qwen3", Quant.Q4_1),
        ("mistral", Quant.Q8_0),
        ("phi3", Quant.Q8_0),
        ("llama", Quant.Q2_K),
        ("llama", Quant.Q4_K),
        ("llama", Quant.Q6_K),
    ],
)
def test_gguf_weights_equal_the_dequantised_load_of_transformers(
    tmp_path: Path, family_name: str, kind: Quant
) -> None:
    config = tiny_config(family_name, num_layers=1)
    encode = None
    if kind.name.endswith("_K"):  # blocks of 256 along the rows
        config = dataclasses.replace(config, dim=256, num_heads=8, num_kv_heads=4, hidden_dim=512)
        encode = _random_blocks(kind)
    path = write_gguf(TinyCheckpoint(config), tmp_path / "m.gguf", kind=kind, encode=encode)
    ours = open_checkpoint(path)
    reference = build_reference(ours)
    if config.architecture == "MistralForCausalLM":  # transformers knows it as a llama only
        theirs = build_reference(TinyCheckpoint(config)).state_dict()
        close = {"rtol": 2e-2, "atol": 2e-2}
    else:
        loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=reference)
        theirs = {name: torch.as_tensor(tensor) for name, tensor in loaded["tensors"].items()}
        close = {"rtol": 0.0, "atol": 0.0}
    found = reference.state_dict()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert found.keys() - tied == theirs.keys() - tied
    for name, tensor in theirs.items():
        torch.testing.assert_close(found[name], tensor.float(), **close)


@pytest.mark.parametrize("family_name", TINY)
def test_gguf_metadata_gives_the_same_config(tmp_path: Path, family_name: str) -> None:
    config = tiny_config(family_name, num_layers=1)
    read = config_from_gguf(write_gguf(TinyCheckpoint(config), tmp_path / "m.gguf"))
    assert read.eos_token_ids == config.eos_token_ids[-1:]
    # a GGUF stores float32: compare what the rope comes to
    for length in (128, config.max_position_embeddings):
        (ours, our_factor), (theirs, their_factor) = (
            rope_frequencies(which, length) for which in (read, config)
        )
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert our_factor == pytest.approx(their_factor)
    same = {"name": config.name, "eos_token_ids": config.eos_token_ids}
    assert dataclasses.replace(read, **same, rope_scaling=config.rope_scaling) == config


def test_the_default_model_is_the_gguf_of_smollm2_and_knows_it(default_model: Checkpoint) -> None:
    known = dataclasses.replace(load_config("default"), name=default_model.config.name)
    assert default_model.config == known


@pytest.fixture(scope="module")
def default_model() -> Checkpoint:
    """The default model's checkpoint."""
    return open_checkpoint("default")


def test_the_default_model_writes_english(default_model: Checkpoint) -> None:
    reference = build_reference(default_model)
    # "The capital of France is" in SmolLM2's vocabulary
    prompt = torch.tensor([[504, 3575, 282, 4649, 314]])
    with torch.no_grad():
        following = reference(prompt).logits[0, -1].argmax()
    assert following == 7042  # " Paris"


def test_a_vision_models_text_stack_skips_the_cross_attention_layers(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    text = TinyCheckpoint(tiny_config("llama", num_layers=3))
    directory = write_hf(text, tmp_path)
    plain = load_file(directory / "model.safetensors")
    renamed = {"vision_model.patch_embedding.weight": torch.ones(2)}
    renamed |= {"model.layers.1.cross_attn.q_proj.weight": torch.ones(2)}
    renamed |= {"model.layers.1.input_layernorm.weight": torch.ones(2)}
    numbers = {"0": "0", "1": "2", "2": "3"}  # layer 1 of the file is cross-attention
    for name, tensor in plain.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = numbers[parts[2]]
        renamed["language_model." + ".".join(parts)] = tensor
    renamed["language_model.model.embed_tokens.weight"] = torch.cat(
        [plain["model.embed_tokens.weight"], torch.ones(8, 288, dtype=torch.bfloat16)]
    )
    save_file(renamed, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    config |= {"num_hidden_layers": 4, "cross_attention_layers": [1]}
    outer = {"architectures": ["MllamaForConditionalGeneration"], "text_config": config}
    (directory / "config.json").write_text(json.dumps(outer))
    assert_equal_weights(open_checkpoint(directory), text)


def test_the_first_layers_alone_are_a_smaller_model_of_the_same_weights(tmp_path: Path) -> None:
    whole = TinyCheckpoint(tiny_config("qwen3"))
    first = open_checkpoint(write_hf(whole, tmp_path), num_layers=1)
    assert first.config.num_layers == 1
    assert not [name for name in first.names() if name.startswith("layers.1.")]
    name = "layers.0.attention.k_norm.weight"
    assert torch.equal(first.get(name), whole.get(name))


@pytest.mark.parametrize("rows", [(0, 5), (100, 544), (544, 544)])
def test_rows_of_a_matrix_are_read_alone(
    family: tuple[TinyCheckpoint, Path], rows: tuple[int, int]
) -> None:
    checkpoint, directory = family
    opened = open_checkpoint(directory)
    for name in ("lm_head.weight", "layers.1.mlp.w3.weight"):  # fused in Phi-3
        expected = checkpoint.get(name)[slice(*rows)]
        assert torch.equal(get_rows(opened, name, *rows), expected)
        assert torch.equal(get_rows(checkpoint, name, *rows), expected)


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    config = tiny_config("qwen2")
    one, two = RandomCheckpoint(config, 5), RandomCheckpoint(config, 5)
    names = one.names()
    assert names == list(expected_shapes(config))
    late = one.get(names[-1])
    for name in names:
        two.get(name)
    assert torch.equal(two.get(names[-1]), late)
    assert torch.equal(late, one.get("embed.weight"))  # tied
    assert not torch.equal(RandomCheckpoint(config, 6).get(names[3]), one.get(names[3]))
    norm, matrix = one.get("norm.weight").float(), one.get("layers.0.mlp.w1.weight").float()
    assert abs(norm.mean() - 1) < 0.01
    assert abs(matrix.std() - 0.02) < 0.001
    assert one.fingerprint == two.fingerprint != RandomCheckpoint(config, 6).fingerprint


def test_files_are_unmapped_after_a_bounded_number_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAPPED_BYTES_LIMIT <= 2**30
    monkeypatch.setattr("models.checkpoints.file_checkpoint.MAPPED_BYTES_LIMIT", 2**20)
    closed = []
    for path in (
        write_hf(TinyCheckpoint(tiny_config("llama")), tmp_path / "hf"),
        write_meta(TinyCheckpoint(tiny_config("llama")), tmp_path / "meta"),
        write_gguf(TinyCheckpoint(tiny_config("llama")), tmp_path / "m.gguf"),
    ):
        checkpoint = open_checkpoint(path)
        assert isinstance(checkpoint, FileCheckpoint)
        really = checkpoint.close
        monkeypatch.setattr(checkpoint, "close", lambda really=really: (closed.append(1), really()))
        tensors = {name: checkpoint.get(name) for name in checkpoint.names()}
        assert all(torch.equal(tensors[name], checkpoint.get(name)) for name in tensors)
    assert len(closed) > 6


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    directory = write_hf(TinyCheckpoint(tiny_config("llama", num_layers=1)), tmp_path)
    first = open_checkpoint(directory).fingerprint
    assert open_checkpoint(directory).fingerprint == first
    write_hf(TinyCheckpoint(tiny_config("llama", num_layers=1), seed=1), tmp_path)
    assert open_checkpoint(directory).fingerprint != first
