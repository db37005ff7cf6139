"""Bad inputs to every program, made by rule: each option, variable and file with each kind of junk.

A case may be harmless (junk that reads as a number); none may end in a traceback or hang. Run by
tests/test_bad_inputs.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONG = "x" * 5000
NUMBERS = ["", "x", "nan", "inf", "-1", "0", "1.5", "1e30", "99999999999999999999", str(2**70), "٣"]
WORDS = ["", "maybe", LONG, "{", "../..", "a\nb", "N150,N300", "é☃"]
PATHS = ["", "nowhere", LONG, "/dev/null", "/proc/self/mem", ".", "pipe", "binary", "~nouser/x"]
DICTS = ["", "x", "[1]", "{", "{a: 1}", "3", "null", "{a: {b: [", "!!python/object:os.system {}"]
SAMPLING = [
    "{temperature: nan}", "{temperature: inf}", "{temperature: -1}", "{temperature: x}",
    "{top_k: -1}", "{top_k: 1e9}", "{top_k: null}", "{top_p: 0}", "{top_p: 1.5}", "{top_p: nan}",
    f"{{seed: {2**70}}}", "{seed: -1}", "{seed: x}", "{temperature: [1, nan]}", "{top_k: []}",
]  # fmt: skip
PAGES = [
    "{block_size: 0}", "{block_size: 33}", "{block_size: 1e9}", "{max_num_blocks: 0}",
    "{max_num_blocks: 1e12}", "{max_num_blocks: x}", "{block_size: null}", "{block_size: nan}",
]  # fmt: skip
PRECISIONS = ["precision_cfg = {", "precision_cfg = {ff9: bfp8}", "fidelity_cfg = {li_ff2: x}"]
PRECISIONS += ["performance accuracy", "precision_cfg = {wo: null}", LONG, "precision_cfg = 3"]
JUNK: list[Any] = [None, True, -1, 0, 1e30, 2**70, "x", "", [], [1], {}, {"a": 1}, float("nan")]

DEMO = ("pytest", ("-q", "-p", "no:cacheprovider", "-k", "performance and batch-1"))


@dataclass(frozen=True)
class Case:
    """One command line, with what it finds in its folder."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], object] | None = None  # given the folder the program runs in


def demo(name: str, *words: str, prepare: Callable[[Path], object] | None = None,
         file: str = "simple_text_demo.py", **environ: str) -> Case:  # fmt: skip
    """A demo of the tiny model, for few tokens."""
    root = Path(__file__).resolve().parents[1]
    own = any(word.startswith("--max_gen") for word in words)
    few = () if own else ("--max_generated_tokens", "2")
    variables = {"TT_BACKEND": "emulator", "HF_MODEL": "model"} | environ
    variables = {key: value for key, value in variables.items() if value != "UNSET"}
    given = (str(root / "demo" / file), *DEMO[1], *few, *words)
    return Case(f"demo {name}", "pytest", given, variables, prepare)


def program(module: str, *words: str, prepare: Callable[[Path], object] | None = None,
            **environ: str) -> Case:  # fmt: skip
    """Any other program."""
    shown = " ".join(word[:20] for word in words).replace("\n", " ")
    return Case(f"{module} {shown}", module, words, environ, prepare)


def options() -> Iterator[Case]:
    """Every override of the demos."""
    values: dict[str, list[str]] = {}
    for name in ("batch_size", "repeat_batches", "max_seq_len", "max_generated_tokens"):
        values[name] = NUMBERS
    values |= {"num_layers": NUMBERS, "data_parallel": NUMBERS}
    for name in ("instruct", "paged_attention", "stop_at_eos", "token_accuracy", "stress_test"):
        values[name] = ["maybe", "2", "nan"]
    values |= {
        "page_params": [*DICTS, *PAGES],
        "sampling_params": [*DICTS, *SAMPLING],
        "input_prompts": [*PATHS, '[{"prompt": "x"}]', '[{"prompt": "' + LONG + '"}]'],
        "decoder_config_file": PATHS,
        "optimizations": [*WORDS[1:], *PRECISIONS],
        "mode": WORDS,
        "weights": WORDS,
        "FAKE_DEVICE": WORDS[1:],
        "nothing_like_it": ["1"],
    }
    for name, several in values.items():
        for value in several:
            yield demo(f"--{name} {value[:30]!r}", f"--{name}", value)
    for value in PATHS:
        asked = ("-k", "batch1-trace", "--image", value)
        yield demo(f"--image {value[:30]!r}", *asked, file="simple_vision_demo.py")


def variables() -> Iterator[Case]:
    """Every variable of the environment."""
    for name in ("MESH_DEVICE", "FAKE_DEVICE", "TT_BACKEND", "GALAXY_TYPE", "TT_EMULATOR_DEVICE"):
        for value in ("JUNK", LONG, "n150"):
            yield demo(f"{name}={value[:20]}", **{name: value})
    for name in ("MAX_PREFILL_CHUNK_SIZE", "PAD_MLP_CORES"):
        for value in NUMBERS[1:]:
            yield demo(f"{name}={value}", **{name: value})
    for name in ("LINE_RS", "LINE_AG", "USE_LINE_AG", "CI", "HF_HUB_OFFLINE"):
        yield demo(f"{name}=JUNK", **{name: "JUNK"})
    for value in PATHS[1:]:
        yield demo(f"HF_MODEL={value[:20]}", HF_MODEL=value)
        yield demo(f"LLAMA_DIR={value[:20]}", HF_MODEL="UNSET", LLAMA_DIR=value)
    for value in (*PATHS[1:5], "binary", "~nouser/x", "binary/below", "/proc/nothing"):
        yield demo(f"TT_CACHE_PATH={value[:20]}", TT_CACHE_PATH=value)
    yield demo("both models", HF_MODEL="a", LLAMA_DIR="/")
    yield demo("silicon", TT_BACKEND="silicon")


def set_json(name: str, key: str, value: Any) -> Callable[[Path], None]:
    """Put a value into one of the model's JSON files."""

    def change(folder: Path) -> None:
        path = folder / "model" / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | {key: value}))

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Put a file into the model's folder, or into the program's."""

    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def cut(name: str, keep: float) -> Callable[[Path], None]:
    """Cut a file of the model short."""

    def change(folder: Path) -> None:
        path = folder / "model" / name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: int(len(content) * keep)])

    return change


CONFIG_KEYS = (
    "architectures hidden_size num_hidden_layers num_attention_heads num_key_value_heads "
    "intermediate_size vocab_size head_dim rms_norm_eps rope_theta rope_scaling "
    "max_position_embeddings tie_word_embeddings eos_token_id bos_token_id hidden_act "
    "quantization_config text_config"
)


def models() -> Iterator[Case]:
    """The tiny model with something wrong in its folder."""
    for key in CONFIG_KEYS.split():
        for value in (JUNK[1], JUNK[2], JUNK[5], "x", [1], {"a": 1}, float("nan")):
            shown = json.dumps(value)[:12]
            yield demo(f"config {key}={shown}", prepare=set_json("config.json", key, value))
    yield demo("1e9 layers", prepare=set_json("config.json", "num_hidden_layers", 10**9))
    texts = ["", "{", "[]", "null", "\x00", '{"a": ' * 9999]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        for number, text in enumerate(texts):
            yield demo(f"{name} text {number}", prepare=write(f"model/{name}", text))
    for name in ("generation_config.json", "model.safetensors.index.json"):
        for number, text in enumerate([*texts, '{"weight_map": [1]}', '{"eos_token_id": "x"}']):
            yield demo(f"{name} text {number}", prepare=write(f"model/{name}", text))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        for keep in (0.0, 0.1, 0.9):
            yield demo(f"{name} cut to {keep}", prepare=cut(name, keep))
        yield demo(f"{name} is a pipe", prepare=as_pipe(f"model/{name}"))
        yield demo(f"{name} is a folder", prepare=as_folder(f"model/{name}"))
    for name, template in TEMPLATES.items():
        yield demo(f"template {name}", prepare=write("model/chat_template.jinja", template))
    for name, content in PROMPTS.items():
        file = write("prompts.json", content)
        yield demo(f"prompts {name}", "--input_prompts", "prompts.json", prepare=file)


TEMPLATES = {
    "syntax": "{% if %}",
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "undefined": "{{ foo.bar }}",
    "memory": "{{ 'a' * 10**12 }}",
    "refusal": "{{ raise_exception('no') }}",
    "escape": "{{ ''.__class__.__mro__ }}",
    "empty": "",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}
PROMPTS = {
    "empty": "", "list": "[]", "number": "3", "binary": b"\xff\xfe\x00", "deep": "[" * 9999,
    "no prompt": "[{}]", "null": '[{"prompt": null}]',
    "length": '[{"prompt": "x", "max_length": -1}]',
    "context": '[{"prompt": "x", "context": "' + LONG + '"}]',
    "memory": '[{"prompt": "x", "context": "/proc/self/mem"}]',
    "url": '[{"prompt": "x", "context": "http://[::1"}]',
    "refused": '[{"prompt": "x", "context": "http://127.0.0.1:9/x"}]',
    "haystack": '[{"prompt": "x", "context": {"haystack": {"tokens": -1}}}]',
    "image": '[{"prompt": "x", "image": 3}]',
    "drawn": '[{"prompt": "x", "image": {"random": [-1]}}]',
    "image of a text model": '[{"prompt": "x", "image": {"random": [9, 9]}}]',
    "huge": '[{"prompt": "x", "context": {"haystack": '
            '{"tokens": 1e18, "needle": "a", "answer": "a"}}}]',
}  # fmt: skip


def as_pipe(name: str) -> Callable[[Path], None]:
    """A pipe that nobody writes into."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def as_folder(name: str) -> Callable[[Path], None]:
    """A folder where a file should be."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def other_formats() -> Iterator[Case]:
    """Meta's directories and GGUF files with junk."""
    keys = "dim n_layers n_heads n_kv_heads vocab_size ffn_dim_multiplier multiple_of norm_eps"
    for key in [*keys.split(), "rope_theta", "use_scaled_rope"]:
        for value in (-1, 0, 1e30, "x", [1], float("nan")):
            yield demo(
                f"params {key}={value}", prepare=set_params(key, value), HF_MODEL="UNSET",
                LLAMA_DIR="meta",
            )  # fmt: skip
    for number, content in enumerate([b"", b"GGUF", b"GGUF" + b"\xff" * 100, b"\x00" * 999]):
        yield demo(f"gguf {number}", prepare=write("bad.gguf", content), HF_MODEL="bad.gguf")
    two = b"GGUF"

    def both(folder: Path) -> None:
        write("two/a.gguf", two)(folder)
        write("two/b.gguf", two)(folder)

    yield demo("two ggufs", prepare=both, HF_MODEL="two")


def set_params(key: str, value: Any) -> Callable[[Path], None]:
    """A Meta directory whose params.json has this value."""
    good = {"dim": 64, "n_layers": 1, "n_heads": 2, "vocab_size": 128, "norm_eps": 1e-5}

    def change(folder: Path) -> None:
        (folder / "meta").mkdir()
        (folder / "meta" / "params.json").write_text(json.dumps(good | {key: value}))
        (folder / "meta" / "tokenizer.model").write_text("x")

    return change


def all_cases() -> list[Case]:
    """Every case, in a fixed order."""
    sources = (options, variables, models, other_formats)
    return [case for source in sources for case in source()]


def furnish(folder: Path, model: Path, prepare: Callable[[Path], object] | None) -> None:
    """A folder to run in: the tiny model, a pipe, a binary file, and what the case adds."""
    (folder / "model").mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file():
            shutil.copy(file, folder / "model" / file.name)
    (folder / "binary").write_bytes(bytes(range(256)))
    os.mkfifo(folder / "pipe")
    if prepare is not None:
        prepare(folder)
