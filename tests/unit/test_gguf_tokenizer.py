"""Tokenizers of GGUF files give llama.cpp's tokens, also where the file says little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.gguf_tokenizer import BYTE, CONTROL, USER
from runtime.tokenizer_files import load_tokenizer
from tests.tiny_formats import raw_gguf
from tests.tiny_models import base_tokenizer

ROOT = Path(__file__).resolve().parents[2]
RECORDED = json.loads((ROOT / "references" / "llama_cpp_tokens.json").read_text())
PIECES = RECORDED["sentence_pieces"]


def write(path: Path, **fields: Any) -> Path:
    """A GGUF file with a vocabulary and an embedding of zeros."""
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    rows = len(fields["tokens"])
    header = raw_gguf(named, [("token_embd.weight", (rows, 32), 1, 0)])
    path.write_bytes(header + bytes(-len(header) % 32 + rows * 64))
    return path


def byte_pairs() -> dict[str, Any]:
    model = json.loads(base_tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "model": "gpt2",
        "tokens": [*tokens, "<|s|>", "<|user tok|>"],
        "token_type": [*[1] * len(tokens), CONTROL, USER],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def sentence_pieces() -> dict[str, Any]:
    return {
        "model": "llama",
        "tokens": PIECES["tokens"],
        "scores": PIECES["scores"],
        "token_type": PIECES["types"],
    }


@pytest.mark.parametrize("words", RECORDED["byte_pairs"])
def test_byte_pairs_are_merged_as_in_llama_cpp(tmp_path: Path, words: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", **byte_pairs(), pre=words))
    found = [tokenizer.encode(text) for text in RECORDED["texts"]]
    assert found == RECORDED["byte_pairs"][words]


def test_a_file_without_a_pre_tokenizer_has_llama_cpps_default(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", **byte_pairs()))
    found = [tokenizer.encode(text) for text in RECORDED["texts"]]
    assert found == RECORDED["byte_pairs"]["default"]


def test_sentence_pieces_are_merged_as_in_llama_cpp_and_read_back(tmp_path: Path) -> None:
    assert BYTE in PIECES["types"]
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", **sentence_pieces()))
    for text, expected in zip(RECORDED["texts"], PIECES["ids"], strict=True):
        assert tokenizer.encode(text) == expected, text
        if "<" not in text and "\u2581" not in text:
            assert tokenizer.decode(expected) == text
    assert tokenizer.eos_ids == {2}  # llama.cpp's default of this kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "model is 'bert': use gpt2 or llama"),
        ({"pre": "nobody's"}, 'pre-tokenizer "nobody\'s" is unknown: known are default'),
        ({"merges": ["a"]}, "the merges do not fit the tokens"),
        ({"merges": ["qq zz"]}, "the merges do not fit the tokens"),
        ({"merges": [1]}, "a list of texts"),
        ({"tokens": [1, 2]}, "a list of texts"),
        ({"token_type": [1]}, "has 1 token types"),
        ({"bos_token_id": 99999}, "bos_token_id is 99999: use a whole number from 0"),
        ({"add_bos_token": "yes"}, "use true or false"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(write(tmp_path / "a.gguf", **byte_pairs() | changes))
    assert "\n" not in str(error.value)


def test_a_token_that_ends_a_turn_stops_though_the_file_does_not_say_so(tmp_path: Path) -> None:
    fields = byte_pairs()
    fields["tokens"] = [*fields["tokens"], "<|im_end|>"]
    fields["token_type"] = [*fields["token_type"], CONTROL]
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", **fields))
    assert tokenizer.eos_ids == {2, len(fields["tokens"]) - 1}
