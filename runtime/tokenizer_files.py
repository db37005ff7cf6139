"""Builds tokenizers from what checkpoints bring: tokenizer.json and its neighbours, or Meta's
tokenizer.model; gguf_tokenizer.py reads the third kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loguru import logger

from models.fields import Fields, read_object, read_text
from runtime.codecs import FastCodec, MetaCodec, SlowCodec
from runtime.gguf_tokenizer import read_gguf
from runtime.tokenizer import Tokenizer

LLAMA3_STOP = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
# Meta's directories bring no template; this is the format that their model card gives
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def read_huggingface(directory: Path, eos_ids: Iterable[int]) -> Tokenizer:
    """From tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja."""
    config = _json(directory / "tokenizer_config.json")
    codec: FastCodec | SlowCodec
    if (directory / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as FastTokenizer

        text = read_text(directory / "tokenizer.json")
        try:
            fast = FastTokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            reason = str(error).splitlines()[0][:200]
            raise ValueError(f"cannot read {directory / 'tokenizer.json'}: {reason}") from None
        codec = FastCodec(fast)
        special = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
        token_id: Any = fast.token_to_id
    else:
        codec = SlowCodec(directory)
        special = set(codec.tokenizer.all_special_ids)
        token_id = codec.tokenizer.convert_tokens_to_ids
    names = _template_names(directory, config)
    stops: set[Any] = set(eos_ids)
    stops |= set(
        _json(directory / "generation_config.json").whole_numbers("eos_token_id", 0, 2**31)
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


def _template_names(directory: Path, config: Fields) -> dict[str, str]:
    """What transformers passes to a template: each special token that has a name."""
    entries = dict(config.values)
    if "added_tokens_decoder" not in config:  # only old directories count on the second file
        entries |= _json(directory / "special_tokens_map.json").values
    extra = entries.pop("extra_special_tokens", None)
    entries |= extra if isinstance(extra, dict) else {}
    names = {}
    for name, value in entries.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and content and not isinstance(content, bool):
            names[name] = Fields({name: content}, config.where).text(name)
    return names


def read_meta(directory: Path, eos_ids: Iterable[int]) -> Tokenizer:
    """From Meta's tokenizer.model, which is the same file for base and instruct models.

    Nothing else in a Meta directory tells them apart, and a name proves nothing. So a model that
    knows Llama 3's header tokens is talked to in Llama 3's published format, or by a
    chat_template.jinja beside it; `--instruct 0` continues plain text, as base models need it.
    """
    params = _json(directory / "params.json")
    eyes = ("<|image|>",) if "vision_chunk_size" in params.values else ()
    codec = MetaCodec(directory / "tokenizer.model", eyes)
    rows = params.integer("vocab_size", -1, 2**31, codec.encoding.n_vocab)
    knows_headers = rows > codec.special["<|eot_id|>"]  # the last token of the format
    known = {"chat_template": LLAMA3_TEMPLATE if knows_headers else None}
    template = _template(directory, Fields(known, directory))
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


def _template(directory: Path, config: Fields) -> str | None:
    separate = directory / "chat_template.jinja"
    if separate.is_file():
        return read_text(separate)
    template = config.values.get("chat_template")
    if isinstance(template, list):  # several by name
        entries = [Fields(entry, config.where) for entry in template if isinstance(entry, dict)]
        by_name = {entry.text("name"): entry.text("template") for entry in entries}
        if by_name and "default" not in by_name:
            raise ValueError(
                f"{config.where} has chat templates {', '.join(by_name)[:100]}, but no `default`: "
                "put the one to use into chat_template.jinja beside it"
            )
        return by_name.get("default")
    return config.text("chat_template", None)


def _json(path: Path) -> Fields:
    return Fields(read_object(path) if path.is_file() else {}, path)


def load_tokenizer(source: str | Path, eos_ids: Iterable[int] = ()) -> Tokenizer:
    """Tokenizer of a GGUF file, an HF directory or a Meta directory; `eos_ids` are added."""
    path = Path(source)
    if path.is_file() and path.suffix == ".gguf":
        return read_gguf(path, eos_ids)
    is_hf = any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    if is_hf or ((path / "config.json").is_file() and (path / "tokenizer.model").is_file()):
        return read_huggingface(path, eos_ids)
    if (path / "tokenizer.model").is_file():
        return read_meta(path, eos_ids)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "nothing"
    raise ValueError(
        f"no tokenizer in {path} (found {found}): expected tokenizer.json (Hugging Face), "
        "tokenizer.model (Meta) or a .gguf file"
    )
