"""Damaged, incomplete or hostile checkpoints: one clear line each, and never execution."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints import locate, open_checkpoint, resolve
from tests.tiny_formats import write_gguf, write_meta
from tests.tiny_models import TinyCheckpoint, tiny_config, write_hf

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good checkpoints of every format, copied before they are damaged."""
    base = tmp_path_factory.mktemp("good")
    tiny = TinyCheckpoint(tiny_config("llama-linear", num_layers=1))
    eight = TinyCheckpoint(tiny_config("llama", num_layers=1))
    return {
        "sharded": write_hf(tiny, base / "sharded", shards=2),
        "single": write_hf(tiny, base / "single"),
        "meta": write_meta(eight, base / "meta", shards=3),
        "gguf": write_gguf(tiny, base / "gguf" / "tiny.gguf").parent,
    }


def cut(path: Path, keep: float) -> None:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def edit_index(directory: Path, change: Callable[[dict[str, str]], None]) -> None:
    """Change the weight map of a sharded model."""
    index = json.loads((directory / INDEX).read_text())
    change(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the content of a safetensors file."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_config(directory: Path, **changes: object) -> None:
    """Change config.json."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def as_pipe(path: Path) -> None:
    """Put a pipe, which nobody writes into, in a file's place."""
    path.unlink()
    os.mkfifo(path)


def _list_twice(directory: Path) -> None:
    text = (directory / INDEX).read_text()
    line = f'"weight_map": {{ "model.norm.weight": "{FIRST}",'
    (directory / INDEX).write_text(text.replace('"weight_map": {', line))


def _name_twice(directory: Path) -> None:
    """A second entry for a tensor in a safetensors header, at the very same place."""
    file = directory / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header, name = data[8:end].decode().rstrip(), "model.norm.weight"
    header = f'{header[:-1]},"{name}":{json.dumps(json.loads(header)[name])}}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data[end:])


def _swap(weight_map: dict[str, str]) -> None:
    for name, file in weight_map.items():
        weight_map[name] = SECOND if file == FIRST else FIRST


def _duplicate(directory: Path) -> None:
    stolen = dict(list(load_file(directory / FIRST).items())[:1])
    edit_tensors(directory / SECOND, lambda tensors: tensors.update(stolen))


HF_DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated shard": (
        "sharded",
        lambda d: cut(d / SECOND, 0.7),
        "00002.safetensors is not a whole",
    ),
    "truncated header": ("single", lambda d: cut(d / "model.safetensors", 1e-3), "not a whole"),
    "empty file": ("single", lambda d: cut(d / "model.safetensors", 0), "not a whole"),
    "index that is a list": (
        "sharded",
        lambda d: (d / INDEX).write_text('{"weight_map": ["a"]}'),
        "no `weight_map`",
    ),
    "vocabulary smaller than the matrix": (
        "single",
        lambda d: edit_config(d, vocab_size=767),
        r"model.embed_tokens.weight is \[768, 160\], not \[767, 160\]",
    ),
    "vocabulary larger than the matrix": (
        "single",
        lambda d: edit_config(d, vocab_size=769),
        r"model.embed_tokens.weight is \[768, 160\], not \[769, 160\]",
    ),
    "stop token outside the vocabulary": (
        "single",
        lambda d: edit_config(d, eos_token_id=768),
        "eos_token_id 768 is outside the vocabulary",
    ),
    "a pipe for weights": ("single", lambda d: as_pipe(d / "model.safetensors"), "not a regular"),
    "missing shard": ("sharded", lambda d: (d / SECOND).unlink(), f"names {SECOND}, not in"),
    "missing file": ("single", lambda d: (d / "model.safetensors").unlink(), "found no weights"),
    "pickled weights": (
        "single",
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "found pytorch_model.bin",
    ),
    "missing index": ("sharded", lambda d: (d / INDEX).unlink(), f"found {FIRST}, {SECOND}"),
    "broken index": ("sharded", lambda d: cut(d / INDEX, 0.5), "not valid JSON"),
    "duplicate key in the index": ("sharded", _list_twice, "model.norm.weight is listed twice"),
    "duplicate key in a file": ("single", _name_twice, "model.norm.weight is listed twice"),
    "wrong index": ("sharded", lambda d: edit_index(d, _swap), "but it is in"),
    "index names an absent tensor": (
        "sharded",
        lambda d: edit_index(d, lambda m: m.update({"model.extra.weight": FIRST})),
        "puts model.extra.weight in .* but it is in no shard",
    ),
    "index lacks a tensor": (
        "sharded",
        lambda d: edit_index(d, lambda m: m.pop("model.norm.weight")),
        "holds model.norm.weight, unknown to",
    ),
    "index points outside": (
        "sharded",
        lambda d: edit_index(d, lambda m: m.update({"model.norm.weight": "../x.safetensors"})),
        "points outside its folder",
    ),
    "same tensor in two shards": ("sharded", _duplicate, "is both in .* and in"),
    "tensor missing": (
        "single",
        lambda d: edit_tensors(d / "model.safetensors", lambda t: t.pop("model.norm.weight")),
        "lacks model.norm.weight",
    ),
    "tensor left over": (
        "single",
        lambda d: edit_tensors(
            d / "model.safetensors",
            lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(1)}),
        ),
        "does not use: model.layers.0.self_attn.o_proj.bias",
    ),
    "wrong shape": (
        "single",
        lambda d: edit_tensors(
            d / "model.safetensors", lambda t: t.update({"model.norm.weight": torch.ones(3)})
        ),
        r"model.norm.weight is \[3\], not \[160\]",
    ),
    "no config": ("single", lambda d: (d / "config.json").unlink(), "holds no model we can read"),
}


@pytest.mark.parametrize("good", ["sharded", "single", "meta", "gguf"])
def test_undamaged_they_open(originals: dict[str, Path], good: str) -> None:
    checkpoint = open_checkpoint(originals[good])
    assert all(checkpoint.get(name).isfinite().all() for name in checkpoint.names())


@pytest.mark.parametrize("damage", HF_DAMAGE)
def test_a_damaged_hf_directory_is_refused_in_one_line(
    originals: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    good, spoil, message = HF_DAMAGE[damage]
    directory = tmp_path / "model"
    shutil.copytree(originals[good], directory)
    spoil(directory)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("differs", [False, True])
def test_a_stored_output_matrix_goes_before_tied_embeddings_as_in_hf(
    originals: dict[str, Path], tmp_path: Path, differs: bool
) -> None:
    from transformers import AutoModelForCausalLM

    directory = tmp_path / "model"
    shutil.copytree(originals["single"], directory)
    changed = load_file(directory / "model.safetensors")["model.embed_tokens.weight"].clone()
    changed[-1] += float(differs)
    edit_tensors(
        directory / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": changed})
    )
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config.tie_word_embeddings is not differs
    ours = checkpoint.get("lm_head.weight")
    assert torch.equal(ours.float(), theirs.lm_head.weight.detach().float())


def test_nan_weights_are_named_when_they_are_read(
    originals: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(originals["single"], directory)
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(directory / "model.safetensors", lambda t: t[name][3].fill_(float("nan")))
    checkpoint = open_checkpoint(directory)
    with pytest.raises(ValueError, match=f"{name} holds 160 NaN or infinite numbers"):
        checkpoint.get("layers.0.mlp.w3.weight")


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _touch, (str(self.path),)


def _touch(path: str) -> None:
    Path(path).touch()


def test_a_pickle_with_code_is_refused_and_never_run(
    originals: dict[str, Path], tmp_path: Path
) -> None:
    directory, trace = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(originals["meta"], directory)
    shard = directory / "consolidated.01.pth"
    torch.save({**torch.load(shard), "tok_embeddings.weight": Bomb(trace)}, shard)
    with pytest.raises(ValueError, match="01.pth holds Python objects .* refused") as error:
        open_checkpoint(directory)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    shard.write_bytes(pickle.dumps(Bomb(trace)))  # no zip file at all
    with pytest.raises(ValueError, match="01.pth"):
        open_checkpoint(directory)
    assert not trace.exists()


META_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda d: cut(d / "consolidated.02.pth", 0.6), "02.pth is not a whole PyTorch"),
    "missing shard": (lambda d: (d / "consolidated.01.pth").unlink(), "consolidated.01.pth is mis"),
    "missing last": (lambda d: (d / "consolidated.02.pth").unlink(), "is a consolidated.*.pth mis"),
    "no weights": (lambda d: [f.unlink() for f in d.glob("*.pth")], "no consolidated.*.pth"),
    "no vocabulary size": (
        lambda d: (d / "params.json").write_text('{"dim": 8, "n_layers": 1, "n_heads": 1}'),
        "lacks vocab_size",
    ),
    "a shard without a tensor": (
        lambda d: torch.save({}, d / "consolidated.01.pth"),
        "is not in consolidated.01.pth",
    ),
}


@pytest.mark.parametrize("damage", META_DAMAGE)
def test_a_damaged_meta_directory_is_refused_in_one_line(
    originals: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    spoil, message = META_DAMAGE[damage]
    directory = tmp_path / "model"
    shutil.copytree(originals["meta"], directory)
    spoil(directory)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keep", "message"),
    [(0.5, "lies past its end"), (0.02, "header breaks off"), (0.0, "cannot read")],
)
def test_a_truncated_gguf_is_refused(
    originals: dict[str, Path], tmp_path: Path, keep: float, message: str
) -> None:
    shutil.copy(originals["gguf"] / "tiny.gguf", tmp_path)
    cut(tmp_path / "tiny.gguf", keep)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_a_file_that_only_calls_itself_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="is not a GGUF file"):
        open_checkpoint(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model", "does not exist: give a directory"),
        ("Llama-3.1-8B", "weights are not at hand: .* random weights"),
        ("no-such-model", "does not exist"),
    ],
)
def test_weights_that_are_not_there_answer_with_what_would_work(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(name)
    assert "\n" not in str(error.value)


def test_a_hub_name_offline_answers_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("no route to the hub\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"cannot get a/b .*no route.*`default`") as error:
        open_checkpoint("a/b")
    assert "\n" not in str(error.value)


def test_a_model_in_the_hub_cache_opens_offline(
    originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit, repository = "0" * 40, tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file in originals["single"].iterdir():
        (snapshot / file.name).symlink_to(file)  # as the hub's library lays files out
    opened = open_checkpoint("org/tiny")
    assert opened.config.name == "tiny"
    assert opened.get("norm.weight").shape == (160,)
    with pytest.raises(ValueError, match="cannot get org/other"):
        open_checkpoint("org/other")


def test_a_directory_with_one_gguf_opens_as_that_file(originals: dict[str, Path]) -> None:
    assert locate(originals["gguf"]).path == originals["gguf"] / "tiny.gguf"


def test_two_names_for_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both set"):
        resolve("org/model", str(tmp_path))
    with pytest.raises(ValueError, match="not a directory"):
        resolve(None, str(tmp_path / "absent"))
    assert resolve(None, None) == "default"
    assert resolve(None, str(tmp_path)) == str(tmp_path)
