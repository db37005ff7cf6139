"""Text to token ids and back, with the model's chat template; made fast to start.

HF directories and GGUF files go through the `tokenizers` library and jinja2, Meta's tokenizer.model
through tiktoken; importing transformers takes seconds and is kept for the rare rest. How the
formats are read: tokenizer_files.py.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

SENTINEL = "\u241f"  # stands for the user's text while a template is taken apart


class Codec(Protocol):
    """A vocabulary: what runtime/tokenizer_files.py builds."""

    def encode(self, text: str, *, whole: bool) -> list[int]:
        """Token ids; `whole` adds what every text begins with (BOS)."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of token ids."""
        ...


class Tokenizer:
    """One model's tokenizer; `chat_template` is None for models that only continue text."""

    def __init__(
        self,
        codec: Codec,
        *,
        eos_ids: Iterable[int],
        special_ids: Iterable[int] = (),
        chat_template: str | None = None,
        template_names: dict[str, str] | None = None,
    ) -> None:
        """`template_names` are the words a template may use, such as bos_token."""
        self.codec = codec
        self.eos_ids = frozenset(eos_ids)
        self.special_ids = frozenset(special_ids) | self.eos_ids
        self.chat_template = chat_template
        self.template_names = template_names or {}
        self._compiled: Any = None

    @property
    def is_instruct(self) -> bool:
        """Whether the model was made to be talked to: it brings a chat template."""
        return self.chat_template is not None

    def encode(self, text: str, *, instruct: bool = False) -> list[int]:
        """Ids of a prompt: as it stands, or as a user's turn of a chat."""
        if instruct:
            return self.codec.encode(self.render(text), whole=False)
        return self.codec.encode(text, whole=True)

    def count(self, text: str) -> int:
        """Tokens of a piece of text."""
        return len(self.codec.encode(text, whole=False))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids."""
        return self.codec.decode(ids, skip_special=skip_special)

    def encode_clipped(self, text: str, limit: int, *, instruct: bool) -> list[int]:
        """Ids of a prompt cut from the left to exactly `limit` where it is longer.

        The chat template stays whole: the user's own text is what gets cut.
        """
        ids = self.encode(text, instruct=instruct)
        if len(ids) <= limit:
            return ids
        if instruct:
            head, _, tail = self.render(SENTINEL).partition(SENTINEL)
            before, after = (self.codec.encode(part, whole=False) for part in (head, tail))
        else:
            before, after = self.codec.encode("", whole=True), []
        room = limit - len(before) - len(after)
        if room < 1:
            raise ValueError(
                f"prompts may have {limit} tokens here, but the chat template alone takes "
                f"{len(before) + len(after)}: raise max_seq_len or generate less"
            )
        return [*before, *self.codec.encode(text, whole=False)[-room:], *after]

    def render(self, text: str) -> str:
        """The user's text within the chat template, up to where the assistant begins."""
        if self.chat_template is None:
            raise ValueError("this model has no chat template: run it with --instruct 0")
        if self._compiled is None:
            from runtime.chat_template import ChatTemplate  # jinja takes a while to import

            self._compiled = ChatTemplate(self.chat_template)
        return self._compiled.render([{"role": "user", "content": text}], self.template_names)


class StandInCodec:
    """For random weights without a vocabulary: as many tokens as a real one, near enough.

    A token is a word or a piece of one; its id is a checksum, so ids say nothing but are stable.
    """

    def __init__(self, vocab_size: int, words: Mapping[str, int] | None = None) -> None:
        """`words` have ids of their own, as special tokens have."""
        self.vocab_size, self.words = vocab_size, dict(words or {})
        self.pieces = {i: word for word, i in self.words.items()}

    def encode(self, text: str, *, whole: bool) -> list[int]:
        own = "".join(f"{re.escape(word)}|" for word in self.words)
        pieces = re.findall(own + r" ?\w{1,6}|\s|[^\w\s]", text)
        ids = [
            self.words.get(piece, zlib.crc32(piece.encode()) % self.vocab_size) for piece in pieces
        ]
        self.pieces.update(zip(ids, pieces, strict=True))
        return ids or [0] * whole

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return "".join(self.pieces.get(i, f"<{i}>") for i in ids)


def stand_in_tokenizer(
    vocab_size: int, eos_ids: Iterable[int] = (), words: Mapping[str, int] | None = None
) -> Tokenizer:
    """A tokenizer for models whose vocabulary is not at hand, but for these words."""
    return Tokenizer(StandInCodec(vocab_size, words), eos_ids=eos_ids)
