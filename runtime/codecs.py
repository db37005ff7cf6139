"""Vocabularies of three libraries behind one face: text to ids and back.

tokenizer_files.py and gguf_tokenizer.py build them; runtime/tokenizer.py says what a codec is.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.fields import read_text

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)),
)


class FastCodec:
    """A vocabulary of the `tokenizers` library."""

    def __init__(self, tokenizer: Any, bos_id: int | None = None) -> None:
        """`bos_id` is for vocabularies that do not add BOS themselves."""
        self.tokenizer, self.bos_id = tokenizer, bos_id

    def encode(self, text: str, *, whole: bool) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=whole).ids
        return [self.bos_id, *ids] if whole and self.bos_id is not None else ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)


class SlowCodec:
    """A tokenizer of transformers, for formats nothing else reads."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # the library has many reasons and no common class
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ValueError(
                f"transformers cannot read the tokenizer in {directory} ({reason}): a "
                "tokenizer.json beside the weights is what is read best"
            ) from None

    def encode(self, text: str, *, whole: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=whole)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special))


class MetaCodec:
    """Llama 3's tiktoken vocabulary."""

    def __init__(self, path: Path, more: Sequence[str] = ()) -> None:
        """`more` are special tokens behind Llama 3's own."""
        import tiktoken

        ranks = _read_ranks(path)
        self.special = {name: len(ranks) + i for i, name in enumerate((*LLAMA3_SPECIAL, *more))}
        self.names = {i: name for name, i in self.special.items()}
        self.encoding = tiktoken.Encoding(
            path.parent.name,
            pat_str=LLAMA3_WORDS,
            mergeable_ranks=ranks,
            special_tokens=self.special,
        )

    def encode(self, text: str, *, whole: bool) -> list[int]:
        ids = self.encoding.encode(text, allowed_special="all")
        return [self.special["<|begin_of_text|>"], *ids] if whole else ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return self.encoding.decode([i for i in ids if not (skip_special and i in self.names)])


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank. The library's own reader keeps a copy elsewhere, and misses changes."""
    try:
        lines = (line.split() for line in read_text(path).splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError:
        ranks = {}
    bytes_known = all(bytes([byte]) in ranks for byte in range(256))
    if not bytes_known or sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"{path} is not in Llama 3's format: for Llama 2 and other SentencePiece models "
            "use the Hugging Face directory (HF_MODEL)"
        )
    return ranks
