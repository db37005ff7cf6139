"""Builds tokenizers from what checkpoints bring: tokenizer.json, GGUF metadata, tokenizer.model.

The pre-tokenizer of a GGUF is only named in it; what the names mean is llama.cpp's knowledge
(src/llama-vocab.cpp). Models with other names need their HF directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from runtime.tokenizer import Tokenizer

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2_WORDS = ""  # the pattern built into ByteLevel
PRE_TOKENIZERS = {
    "llama-bpe": (LLAMA3_WORDS, False),  # (pattern, each digit alone)
    "qwen2": (QWEN2_WORDS, False),
    "deepseek-r1-qwen": (QWEN2_WORDS, False),
    "smollm": (GPT2_WORDS, True),
    "starcoder": (GPT2_WORDS, True),
    "gpt-2": (GPT2_WORDS, False),
    "default": (GPT2_WORDS, False),
}
CONTROL_TOKEN, USER_TOKEN = 3, 4  # tokenizer.ggml.token_type

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
LLAMA3_STOP = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
# Meta's directories bring no template; this is the format that their model card gives
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
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

    def __init__(self, directory: Path, **arguments: Any) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, **arguments
        )

    def encode(self, text: str, *, whole: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=whole)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special))


class MetaCodec:
    """Llama 3's tiktoken vocabulary."""

    def __init__(self, path: Path) -> None:
        import tiktoken
        from tiktoken.load import load_tiktoken_bpe

        try:
            ranks = load_tiktoken_bpe(str(path))
        except ValueError:
            raise ValueError(
                f"{path} is not in Llama 3's format: for Llama 2 and other SentencePiece models "
                "use the Hugging Face directory (HF_MODEL)"
            ) from None
        self.special = {name: len(ranks) + i for i, name in enumerate(LLAMA3_SPECIAL)}
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


def read_huggingface(directory: Path, eos_ids: Iterable[int]) -> Tokenizer:
    """From tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja."""
    config = _json(directory / "tokenizer_config.json")
    codec: FastCodec | SlowCodec
    if (directory / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as FastTokenizer

        try:
            fast = FastTokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"cannot read {directory / 'tokenizer.json'}: {error}") from None
        codec = FastCodec(fast)
        special = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
        token_id: Any = fast.token_to_id
    else:
        codec = SlowCodec(directory)
        special = set(codec.tokenizer.all_special_ids)
        token_id = codec.tokenizer.convert_tokens_to_ids
    names = {
        name: _content(config[name])
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if config.get(name)
    }
    stops: set[Any] = set(eos_ids) | _ids(
        _json(directory / "generation_config.json").get("eos_token_id")
    )
    if "eos_token" in names:
        stops.add(token_id(names["eos_token"]))
    return Tokenizer(
        codec,
        eos_ids=stops - {None},
        special_ids=special,
        chat_template=_template(directory, config),
        template_names=names,
    )


def read_gguf(path: Path, eos_ids: Iterable[int]) -> Tokenizer:
    """From the metadata of a GGUF file."""
    from models.checkpoints.gguf_file import GgufFile

    with GgufFile(path) as file:
        tokens: list[str] = file.field("tokenizer.ggml.tokens")
        kinds = file.field("tokenizer.ggml.token_type", [])
        special = {i for i, kind in enumerate(kinds) if kind == CONTROL_TOKEN}
        own = {i for i, kind in enumerate(kinds) if kind == USER_TOKEN}
        bos = file.field("tokenizer.ggml.bos_token_id", None)
        stops = set(eos_ids)
        for name in ("eos", "eot", "eom"):
            stops |= _ids(file.field(f"tokenizer.ggml.{name}_token_id", None))
        add_bos = bool(file.field("tokenizer.ggml.add_bos_token", False))
        codec: FastCodec | SlowCodec
        if file.field("tokenizer.ggml.model") == "gpt2":
            fast = _byte_pair_tokenizer(
                tokens,
                file.field("tokenizer.ggml.merges"),
                file.field("tokenizer.ggml.pre", "default"),
                special=special,
                own=own,
            )
            codec = FastCodec(fast, bos if add_bos else None)
        else:
            codec = SlowCodec(path.parent, gguf_file=path.name)
        names = {"bos_token": tokens[bos]} if bos is not None else {}
        if stops:
            names["eos_token"] = tokens[min(stops)]
        template = file.field("tokenizer.chat_template", None)
    return Tokenizer(
        codec, eos_ids=stops, special_ids=special, chat_template=template, template_names=names
    )


def read_meta(directory: Path, eos_ids: Iterable[int]) -> Tokenizer:
    """From Meta's tokenizer.model, which is the same file for base and instruct models.

    Nothing else in a Meta directory tells them apart, and a name proves nothing. So a model that
    knows Llama 3's header tokens is talked to in Llama 3's published format, or by a
    chat_template.jinja beside it; `--instruct 0` continues plain text, as base models need it.
    """
    codec = MetaCodec(directory / "tokenizer.model")
    rows = _json(directory / "params.json").get("vocab_size", codec.encoding.n_vocab)
    knows_headers = rows > codec.special["<|eot_id|>"]  # the last token of the format
    template = _template(directory, {"chat_template": LLAMA3_TEMPLATE if knows_headers else None})
    if template == LLAMA3_TEMPLATE:
        logger.info(
            f"{directory.name}: Meta's files do not tell base from instruct; prompts are wrapped "
            "in Llama 3's chat format. For a base model use --instruct 0"
        )
    return Tokenizer(
        codec,
        eos_ids={codec.special[name] for name in LLAMA3_STOP} | set(eos_ids),
        special_ids=codec.names,
        chat_template=template,
        template_names={"bos_token": "<|begin_of_text|>"},
    )


def _byte_pair_tokenizer(
    tokens: list[str], merges: list[str], words: str, *, special: set[int], own: set[int]
) -> Any:
    """A byte-level BPE of the `tokenizers` library."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    if words not in PRE_TOKENIZERS:
        raise ValueError(
            f"GGUF pre-tokenizer {words!r} is unknown: known are {', '.join(PRE_TOKENIZERS)}; "
            "use the model's Hugging Face directory instead"
        )
    pattern, single_digits = PRE_TOKENIZERS[words]
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    fast = FastTokenizer(
        models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=words == "llama-bpe")
    )
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(tokens[i], special=True) for i in sorted(special)])
    fast.add_tokens([AddedToken(tokens[i], normalized=False) for i in sorted(own)])
    return fast


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    separate = directory / "chat_template.jinja"
    if separate.is_file():
        return separate.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        by_name = {entry["name"]: entry["template"] for entry in template}
        return by_name.get("default")
    return template


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _ids(value: int | list[int] | None) -> set[int]:
    if value is None:
        return set()
    return {value} if isinstance(value, int) else set(value)


def load_tokenizer(source: str | Path, eos_ids: Iterable[int] = ()) -> Tokenizer:
    """Tokenizer of a GGUF file, an HF directory or a Meta directory; `eos_ids` are added."""
    path = Path(source)
    if path.is_file() and path.suffix == ".gguf":
        return read_gguf(path, eos_ids)
    if (path / "tokenizer.json").is_file() or (path / "tokenizer_config.json").is_file():
        return read_huggingface(path, eos_ids)
    if (path / "tokenizer.model").is_file():
        return read_meta(path, eos_ids)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "nothing"
    raise ValueError(
        f"no tokenizer in {path} (found {found}): expected tokenizer.json (Hugging Face), "
        "tokenizer.model (Meta) or a .gguf file"
    )
