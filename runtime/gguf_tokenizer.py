"""Builds a tokenizer from a GGUF file's metadata as llama.cpp reads it.

The pre-tokenizer is only named in the file; what the names mean, and what holds where a key is
absent, is llama.cpp's knowledge (src/llama-vocab.cpp). tests/unit/test_gguf_tokenizer.py compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.fields import Fields
from runtime.codecs import LLAMA3_WORDS, FastCodec
from runtime.tokenizer import Tokenizer

QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
UNKNOWN, CONTROL, USER, BYTE = 2, 3, 4, 6  # tokenizer.ggml.token_type
SPACE = "\u2581"  # how SentencePiece writes a space
# Texts that end a turn: a file need not say so.
END_TEXTS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
    + ("<|end_of_text|>", "<EOT>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
)


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is cut before byte pairs are merged: by each pattern in turn."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is taken whole
    add_bos: bool = False  # where tokenizer.ggml.add_bos_token is absent


PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((GPT2_WORDS,)),
    "llama-bpe": PreTokenizer((LLAMA3_WORDS,), ignore_merges=True, add_bos=True),
    "llama3": PreTokenizer((LLAMA3_WORDS,), ignore_merges=True, add_bos=True),
    "tekken": PreTokenizer((TEKKEN_WORDS,), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer((LLAMA3_WORDS,)),
    "smaug-bpe": PreTokenizer((LLAMA3_WORDS,)),
    "qwen2": PreTokenizer((QWEN2_WORDS,)),
    "deepseek-r1-qwen": PreTokenizer((QWEN2_WORDS,)),
    "smollm": PreTokenizer((r"\p{N}", GPT2_WORDS)),
    "starcoder": PreTokenizer((r"\p{N}", GPT2_WORDS)),
}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a file by id, with what sets some apart."""

    tokens: list[str]
    kinds: tuple[int, ...]
    fields: Fields

    def of_kind(self, *kinds: int) -> list[int]:
        """Ids of tokens of these kinds."""
        return [i for i, kind in enumerate(self.kinds) if kind in kinds]

    def token_id(self, name: str, default: int | None = None) -> int | None:
        """A special token's id."""
        fallback = default if default is not None and default < len(self.tokens) else None
        return self.fields.integer(f"{name}_token_id", 0, len(self.tokens) - 1, fallback)


def read_gguf(path: Path, eos_ids: Iterable[int]) -> Tokenizer:
    """From the metadata of a GGUF file."""
    from models.checkpoints.gguf_file import GgufFile

    with GgufFile(path) as file:
        vocabulary = _vocabulary(file.metadata.below("tokenizer.ggml."), file.vocab_size())
        template = file.metadata.text("tokenizer.chat_template", None)
    fields = vocabulary.fields
    model = fields.text("model")
    if model == "gpt2":
        words = fields.text("pre", "default")
        if words not in PRE_TOKENIZERS:
            raise ValueError(
                f"GGUF pre-tokenizer {words[:60]!r} is unknown: known are "
                f"{', '.join(PRE_TOKENIZERS)}; use the model's Hugging Face directory instead"
            )
        fast = _byte_pairs(vocabulary, PRE_TOKENIZERS[words])
        bos, eos = vocabulary.token_id("bos"), vocabulary.token_id("eos")
        add_bos = fields.flag("add_bos_token", PRE_TOKENIZERS[words].add_bos)
    elif model == "llama":
        fast = _sentence_pieces(vocabulary)
        bos, eos = vocabulary.token_id("bos", 1), vocabulary.token_id("eos", 2)
        add_bos = fields.flag("add_bos_token", True)
    else:
        raise fields.refuse("model", "gpt2 or llama, or the model's Hugging Face directory")
    ends = {eos, *(vocabulary.token_id(name) for name in ("eot", "eom"))} - {None}
    ends |= {i for i in vocabulary.of_kind(CONTROL, USER) if vocabulary.tokens[i] in END_TEXTS}
    names = {
        f"{name}_token": vocabulary.tokens[i]
        for name, i in (("bos", bos), ("eos", eos))
        if i is not None
    }
    return Tokenizer(
        FastCodec(fast, bos if add_bos else None),
        eos_ids={i for i in ends if i is not None} | set(eos_ids),
        special_ids=vocabulary.of_kind(CONTROL),
        chat_template=template,
        template_names=names,
    )


def _vocabulary(fields: Fields, rows: int) -> Vocabulary:
    tokens = fields.strings("tokens")
    if not tokens:
        raise ValueError(f"{fields.where} lacks {fields.prefix}tokens: it has no vocabulary")
    if len(tokens) > rows:
        raise ValueError(f"{fields.where} names {len(tokens)} tokens, but embeds {rows}")
    kinds = fields.whole_numbers("token_type", 0, 2**31)
    if kinds and len(kinds) != len(tokens):
        raise ValueError(f"{fields.where} has {len(kinds)} token types for {len(tokens)} tokens")
    return Vocabulary(tokens, kinds or (1,) * len(tokens), fields)


def _byte_pairs(vocabulary: Vocabulary, how: PreTokenizer) -> Any:
    """A byte-level BPE of the `tokenizers` library."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    where = vocabulary.fields.where
    parts = [merge.partition(" ") for merge in vocabulary.fields.strings("merges")]
    merges = [(left, right) for left, _, right in parts]
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    try:
        fast = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=how.ignore_merges))
    except Exception as error:  # the library raises plain Exception
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f"{where}: the merges do not fit the tokens ({reason})") from None
    steps: list[Any] = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in how.patterns
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    _add_special(fast, vocabulary)
    return fast


def _sentence_pieces(vocabulary: Vocabulary) -> Any:
    """SentencePiece's BPE: of all neighbours that make a token, the best score merges first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    fields, tokens = vocabulary.fields, vocabulary.tokens
    scores = fields.numbers("scores", -1e30, 1e30) or (0.0,) * len(tokens)
    if len(scores) != len(tokens):
        raise ValueError(f"{fields.where} has {len(scores)} scores for {len(tokens)} tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [
        (scores[i], i, (token[:cut], token[cut:]))
        for token, i in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    merges.sort(key=lambda merge: (-merge[0], merge[1]))
    unknown = vocabulary.token_id("unknown", 0)
    fast = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[pair for _, _, pair in merges],
            unk_token=tokens[unknown] if unknown is not None else None,
            fuse_unk=False,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    strip: list[Any] = []
    if fields.flag("add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE))
        strip = [decoders.Strip(" ", 1, 0)]
    fast.normalizer = normalizers.Sequence(steps)
    fast.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_special(fast, vocabulary)
    return fast


def _add_special(fast: Any, vocabulary: Vocabulary) -> None:
    """Tokens that are found in a text as they stand."""
    from tokenizers import AddedToken

    tokens = vocabulary.tokens
    control, own = vocabulary.of_kind(CONTROL), vocabulary.of_kind(UNKNOWN, USER)
    fast.add_special_tokens([AddedToken(tokens[i], special=True) for i in control if tokens[i]])
    fast.add_tokens([AddedToken(tokens[i], normalized=False) for i in own if tokens[i]])
