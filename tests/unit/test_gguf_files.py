"""GGUF files as others write them, split or with odd types, and files that lie about themselves."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Quant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.checkpoints import locate, open_checkpoint
from models.checkpoints.gguf_file import GgufFile
from models.config_readers import config_from_gguf
from runtime.tokenizer_files import load_tokenizer
from tests.tiny_formats import raw_gguf, write_gguf
from tests.tiny_models import TinyCheckpoint, tiny_config

CHECKPOINT = TinyCheckpoint(tiny_config("llama-linear", num_layers=1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(CHECKPOINT, tmp_path_factory.mktemp("whole") / "tiny.gguf")


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_gguf(CHECKPOINT, tmp_path / "split" / "tiny.gguf", tensors_per_part=4)
    return sorted((tmp_path / "split").glob("*.gguf"))


def test_a_split_model_reads_as_the_whole_one_from_any_of_its_parts(
    whole: Path, parts: list[Path]
) -> None:
    assert len(parts) > 2
    one = open_checkpoint(whole)
    for name in (parts[0], parts[-1], parts[0].parent):
        split = open_checkpoint(name)
        assert split.names() == one.names()
        assert all(torch.equal(split.get(key), one.get(key)) for key in one.names())
        assert split.config.name == one.config.name
    before = split.fingerprint
    parts[-1].touch()
    assert open_checkpoint(parts[0]).fingerprint != before
    tokenizer = load_tokenizer(locate(parts[1]).path)
    assert tokenizer.encode("The quick fox") == load_tokenizer(whole).encode("The quick fox")


def swap(parts: list[Path]) -> None:
    content = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda parts: parts[1].unlink(), r"00002-of-\d+.gguf is missing beside it"),
        (swap, "says it is not part 2 of its model"),
        (lambda parts: parts[2].write_bytes(parts[2].read_bytes()[:-999]), "is cut short"),
        (lambda parts: shutil.copy(parts[1], parts[0]), "is not the first of"),
    ],
)
def test_a_split_model_with_a_wrong_part_is_one_line(
    parts: list[Path], damage: Callable[[list[Path]], object], message: str
) -> None:
    damage(parts)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(parts[0])
    assert "\n" not in str(error.value)


def test_a_folder_with_two_models_asks_which(whole: Path, tmp_path: Path) -> None:
    for name in ("a-Q4_0.gguf", "b-Q8_0.gguf"):
        shutil.copy(whole, tmp_path / name)
    with pytest.raises(ValueError, match=r"2 GGUF models \(a-Q4_0.gguf, b-Q8_0.gguf\): name the"):
        locate(tmp_path)


@pytest.mark.parametrize("kind", list(Quant), ids=lambda kind: kind.name)
def test_every_type_is_read_or_refused_by_name(tmp_path: Path, kind: Quant) -> None:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    elements = block * 32 // min(block, 32)
    tensors = [("x", (2, elements), kind.value, 0)]
    header = raw_gguf({"general.alignment": 32}, tensors)
    path = tmp_path / "one.gguf"
    path.write_bytes(header + bytes(-len(header) % 32 + 2 * elements // block * block_bytes))
    try:
        with GgufFile(path) as file:
            assert file.read("x").shape == (2, elements)
    except ValueError as error:
        assert f"x has type {kind.name}; read are F32, F16, BF16" in str(error)
        assert kind.name in ("I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "F64") or "Q" in kind.name


def test_an_error_while_a_tensor_is_read_still_lets_the_file_go(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.checkpoints import gguf_file

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_file.torch, "from_numpy", interrupt)
    # closing a map that an array points into was a BufferError of its own
    with pytest.raises(KeyboardInterrupt), GgufFile(whole) as file:
        file.read("token_embd.weight")


KEYS = """
general.architecture general.alignment split.count split.no llama.block_count
llama.context_length llama.embedding_length llama.feed_forward_length
llama.attention.head_count llama.attention.head_count_kv llama.attention.key_length
llama.attention.layer_norm_rms_epsilon llama.attention.sliding_window llama.rope.freq_base
llama.rope.scaling.type llama.rope.scaling.factor llama.rope.scaling.original_context_length
tokenizer.ggml.model tokenizer.ggml.pre tokenizer.ggml.tokens tokenizer.ggml.token_type
tokenizer.ggml.merges tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id
tokenizer.ggml.add_bos_token tokenizer.chat_template
""".split()  # noqa: SIM905 (a list of 26 words is longer and says no more)
SCALARS = st.one_of(
    st.booleans(),
    st.sampled_from([0, 1, 2, 31, 32, 2**31, 2**32 - 1, 2**63]),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=5),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(st.integers(0, 2**64 - 1), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
    st.lists(st.floats(), max_size=3),
)


def is_one_line(error: ValueError) -> bool:
    return "\n" not in str(error) and len(str(error)) < 800


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_any_value_of_any_key_is_one_line_or_a_model(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    with GgufFile(whole) as good:
        fields = good.fields | changes
        data = min(entry.offset for entry in good.tensors.values())
        tensors = [
            (name, entry.shape, entry.kind.value, entry.offset - data)
            for name, entry in good.tensors.items()
        ]
    header = raw_gguf(fields, tensors)
    path = tmp_path_factory.mktemp("changed") / "tiny.gguf"
    path.write_bytes(header + bytes(-len(header) % 32) + whole.read_bytes()[data:])
    start = time.monotonic()
    for reader in (config_from_gguf, open_checkpoint, load_tokenizer):
        try:
            reader(path)
        except ValueError as error:
            assert is_one_line(error), error
    assert time.monotonic() - start < 10


def test_a_header_with_any_bytes_changed_is_one_line_or_a_model(
    whole: Path, tmp_path: Path
) -> None:
    with GgufFile(whole) as good:
        size = min(entry.offset for entry in good.tensors.values())
    content, dice = whole.read_bytes(), random.Random(0)
    path = tmp_path / "tiny.gguf"
    for attempt in range(150):
        changed = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(4, size) if attempt % 2 else dice.randrange(4, 400)
            changed[at] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
        if attempt % 10 == 0:
            del changed[dice.randrange(size) :]
        path.write_bytes(changed)
        start = time.monotonic()
        try:
            open_checkpoint(path)
        except ValueError as error:
            assert is_one_line(error), error
        assert time.monotonic() - start < 10
