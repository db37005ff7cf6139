"""Tokenizers read by the fast libraries agree with transformers, whatever file they came from."""

import base64
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from runtime.tokenizer import stand_in_tokenizer
from runtime.tokenizer_files import load_tokenizer

CORPUS = ["the cat sat on the mat", "the dog ate 12 of the 345 cakes", "don't you see the sea?"]
TEXTS = ["the cat ate 12345 cakes", "  two  spaces\n\nand lines\t", "Ünïcode ☃ <e>", "", "don't"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {%- if message.role == 'user' %}<u>{{ message.content }}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SPECIAL = ["<s>", "<e>", "<u>", "<a>"]


def train(*, single_digits: bool = False) -> FastTokenizer:
    fast = FastTokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    fast.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        show_progress=False,
    )
    fast.train_from_iterator(CORPUS, trainer)
    return fast


@pytest.fixture
def hf_directory(tmp_path: Path) -> Path:
    fast = train()
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "<e>", "__type": "AddedToken"},
        "chat_template": TEMPLATE,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
    return tmp_path


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    import gguf
    import numpy as np

    fast = train(single_digits=True)
    vocabulary = sorted(fast.get_vocab(), key=fast.get_vocab().get)  # type: ignore[arg-type]
    merges = json.loads(fast.to_str())["model"]["merges"]
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_types([3 if token in SPECIAL else 1 for token in vocabulary])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", np.zeros((len(vocabulary), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def check_against_transformers(ours_at: Path, theirs: AutoTokenizer) -> None:
    ours = load_tokenizer(ours_at)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        chat = theirs.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )["input_ids"]
        assert ours.encode(text, instruct=True) == chat
        assert ours.decode(chat) == theirs.decode(chat, skip_special_tokens=True)


def test_an_hf_directory_reads_as_transformers_reads_it(hf_directory: Path) -> None:
    check_against_transformers(hf_directory, AutoTokenizer.from_pretrained(hf_directory))
    tokenizer = load_tokenizer(hf_directory, eos_ids=[2])
    assert tokenizer.eos_ids == {1, 2, 3}
    assert tokenizer.is_instruct


def test_a_separate_template_file_wins(hf_directory: Path) -> None:
    (hf_directory / "chat_template.jinja").write_text("<u>{{ messages[0].content }}")
    assert load_tokenizer(hf_directory).render("hi") == "<u>hi"


def test_a_gguf_file_reads_as_transformers_reads_it(gguf_file: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    check_against_transformers(gguf_file, theirs)
    assert load_tokenizer(gguf_file).eos_ids == {1}


def test_metas_vocabulary_gets_llama_3s_special_tokens(tmp_path: Path) -> None:
    write_tiktoken(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    begin, header, end_header, eot = 258, 264, 265, 267
    assert tokenizer.encode("the") == [begin, 257]
    chat = tokenizer.encode("the", instruct=True)
    assert chat[:2] == [begin, header]
    assert [i for i in chat if i > 257] == [begin, *[header, end_header, eot, header, end_header]]
    assert tokenizer.decode(chat) == "user\n\ntheassistant\n\n"
    assert eot in tokenizer.eos_ids


def write_tiktoken(directory: Path) -> None:
    """A tokenizer.model in Meta's format, 258 tokens."""
    directory.mkdir(exist_ok=True)
    pieces = [bytes([i]) for i in range(256)] + [b"th", b"the"]
    lines = [f"{base64.b64encode(piece).decode()} {i}" for i, piece in enumerate(pieces)]
    (directory / "tokenizer.model").write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["Llama3.1-8B", "Llama3.1-8B-Instruct"])
@pytest.mark.parametrize(("rows", "instruct"), [(258 + 256, True), (258, False)])
def test_not_a_name_but_the_vocabulary_makes_a_meta_model_one_to_talk_to(
    tmp_path: Path, name: str, rows: int, instruct: bool
) -> None:
    directory = tmp_path / name
    write_tiktoken(directory)
    (directory / "params.json").write_text(json.dumps({"vocab_size": rows}))
    assert load_tokenizer(directory).is_instruct == instruct
    (directory / "chat_template.jinja").write_text("<u>{{ messages[0].content }}")
    assert load_tokenizer(directory).render("hi") == "<u>hi"


@pytest.mark.parametrize("instruct", [True, False])
def test_a_clipped_prompt_has_exactly_the_limit_and_keeps_its_end(
    hf_directory: Path, instruct: bool
) -> None:
    tokenizer = load_tokenizer(hf_directory)
    text = "the cat sat on the mat. " * 50 + "the end"
    ids = tokenizer.encode_clipped(text, 60, instruct=instruct)
    assert len(ids) == 60
    whole = tokenizer.encode(text, instruct=instruct)
    assert ids[:2] == whole[:2] if instruct else ids[0] == whole[0]
    assert ids[-20:] == whole[-20:]
    assert tokenizer.encode_clipped("the cat", 60, instruct=instruct) == tokenizer.encode(
        "the cat", instruct=instruct
    )
    with pytest.raises(ValueError, match="template alone takes"):
        tokenizer.encode_clipped(text, 1, instruct=instruct)


def test_the_stand_in_counts_about_as_a_real_vocabulary_does() -> None:
    tokenizer = stand_in_tokenizer(1000)
    text = "Explain why the sky is blue, in 3 sentences."
    ids = tokenizer.encode(text)
    assert 10 <= len(ids) <= 20
    assert all(0 <= i < 1000 for i in ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("content", [None, "{"])
def test_a_directory_without_a_readable_tokenizer_is_one_line(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("with_config", [True, False])
def test_a_directory_with_a_sentencepiece_file_alone_reads_as_in_transformers(
    tmp_path: Path, with_config: bool
) -> None:
    import sentencepiece

    (tmp_path / "text").write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300,
        model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if with_config:
        settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]


JUNK = [
    "[]",
    "3",
    '"x"',
    "null",
    "{}",
    '{"eos_token_id": "x"}',
    '{"eos_token": 3}',
    "\x00",
    "{" * 9999,
]
JUNK += ['{"chat_template": 3}', '{"chat_template": [3]}', '{"bos_token": {"content": []}}']
JUNK += ['{"eos_token_id": [1, 2.5]}', '{"vocab_size": "x"}', '{"chat_template": [{"name": 3}]}']


@pytest.mark.parametrize("content", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]
    + ["chat_template.jinja", "params.json", "tokenizer.model"],
)
def test_junk_in_any_file_is_one_line_or_does_not_matter(
    hf_directory: Path, tmp_path: Path, name: str, content: str
) -> None:
    if name in ("params.json", "tokenizer.model"):
        hf_directory = tmp_path / "meta"
        write_tiktoken(hf_directory)
    (hf_directory / name).write_text(content)
    try:
        tokenizer = load_tokenizer(hf_directory)
        tokenizer.encode("the cat", instruct=tokenizer.is_instruct)
    except ValueError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
