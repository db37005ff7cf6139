"""Bad inputs to the programs beside the demos: bad_inputs.py has those, and what both share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.bad_inputs import DICTS, LONG, NUMBERS, PATHS, PRECISIONS, Case, demo, program, write


def predictions() -> Iterator[Case]:
    """perf.predict: numbers, devices, what-if values, outputs."""
    base = ("perf.predict", "--model", "SmolLM2-135M-Instruct", "--device", "N150")
    for name in ("batch_size", "prefill_len", "data_parallel", "generated"):
        for value in NUMBERS:
            yield program(*base, f"--{name}", value)
    for value in ("", "x", LONG, "model/none", "/dev/null", "pipe"):
        yield program("perf.predict", "--model", value, "--device", "N150")
        yield program(*base[:3], "--device", value)
    facts = ("dram_gbps", "mesh_shape", "compute_grid", "clock_ghz", "dram_banks", "name", "arch")
    for fact in (*facts, "links", "ring", "l1_bytes", "gap_us", "nothing"):
        for value in ("", "null", "x", '"x"', "NaN", "Infinity", "-1", "0", "3,5", "1e300", "[]"):
            yield program(*base, "--set", f"{fact}={value}")
    for content in (
        ["", "[]", "3", "{", '{"base": 3}', '{"base": "N999"}', '{"base": "N150", "x": 1}']
        + ['{"base": "N150", "dram_gbps": "fast"}', '{"base": "N150", "mesh_shape": [1]}']
        + ['{"base": "N150", "mesh_shape": ["a", "b"]}', '{"base": "N150", "clock_ghz": NaN}']
        + ['{"base": "N150", "name": 3}', '{"base": ["N150"]}', '{"base": "N150", "arch": "x"}']
    ):
        file = write("device.json", content)
        yield program(*base[:3], "--device", "device.json", prepare=file)
    for option in ("--trace", "--plot"):
        for value in ("nowhere/x.svg", ".", "/proc/x.svg", LONG):
            yield program(*base, option, value)
    yield program(*base, "--plot", "x.nothing")
    yield program(*base, "--without", LONG)
    yield program(*base, "--software", "x")
    for value in PRECISIONS:
        yield program(*base, "--optimizations", value)


def sweeps() -> Iterator[Case]:
    """perf.sweep: lists of numbers and names."""
    base = ("perf.sweep", "--model", "SmolLM2-135M-Instruct", "--devices", "N150")
    few = (*base, "--batch", "1", "--context", "128")
    for name in ("batch", "context", "data_parallel"):
        for value in ("", "1,", ",", "0", "1,x", "1;2", "1e3", "-1", "33,1", str(2**70)):
            yield program(*few, f"--{name}", value)
    yield program(*few, "--harness", "x")
    for name in ("devices", "optimizations", "set", "software", "model", "generated"):
        for value in ("", ",", "x", LONG):
            yield program(*few, f"--{name}", value)
    for value in (".", "nowhere/x.txt", "/proc/x.svg", "pipe"):
        yield program(*few, "--plot", value)
        yield program(*few, "--csv", value)


def serving() -> Iterator[Case]:
    """The programs around vLLM, up to where they need it."""
    for name, junk in (
        ("max_seqs_in_batch", NUMBERS),
        ("max_model_len", NUMBERS),
        ("port", [*NUMBERS, "65536"]),
        ("override_tt_config", [*DICTS, "NaN", "[" * 9999, '{"trace_mode": []}', '{"x": 1e400}']),
        ("model", PATHS),
    ):
        for value in junk:
            yield program("demo.server_example_tt", f"--{name}", value)
    for name in ("max_tokens", "num_repeat_prompts", "perf_prompt_len"):
        for value in ("0", "x", "nan", str(2**70)):
            yield program("demo.offline_inference_tt", f"--{name}", value)
    for name, junk in (
        ("base_url", ["", "http://[::1", "ftp://x", LONG, "http://127.0.0.1:9/v1"]),
        ("num_requests", ["0", "x", "1e30"]),
        ("num_concurrent", ["0", "-1", "x"]),
        ("temperature", ["nan", "-1", "x"]),
        ("ttft_limit_ms", ["nan", "0", "inf"]),
        ("plot", [".", "x.txt", "nowhere/x.png", "/proc/x.png"]),
        ("prompt_json_path", PATHS),
    ):
        for value in junk:
            yield program("demo.example_requests_client", f"--{name}", value)


def rarely_used() -> Iterator[Case]:
    """Weights repacked and references recorded, decoder files, threads."""
    for words in (["nowhere", "out"], ["binary", "out"], ["model", "out"], ["pipe", "out"],
                  ["model", "binary"], ["model", "out", "0"],
                  ["model", "out", "-n", "x"]):  # fmt: skip
        yield program("scripts.repack_weights_70b", *words)
    for words in (["--text", "binary"], ["--text", "pipe"], ["--text", "."], ["--tokens", "1"],
                  ["--text", "/dev/zero"], ["--model", "nowhere"], ["--out", "."]):  # fmt: skip
        yield program("references.generate_reference_hf", *words)
    for text in ("[]", "3", "{", '{"decoders": 3}', '{"decoders": {"0": []}}', '{"decoders": {}}',
                 '{"decoders": {"-1": {"precision_cfg": {"WQKV": "BFP8"}}}}'):  # fmt: skip
        file = write("decoders.json", text)
        words = ("--decoder_config_file", "decoders.json")
        yield demo(f"decoders {text}", *words, prepare=file)
    for value in ("abc", "0", "-1", "100000", "1,x", "1e1"):
        yield demo(f"OMP_NUM_THREADS={value}", OMP_NUM_THREADS=value)
        yield demo(f"TT_EMULATOR_THREADS={value}", TT_EMULATOR_THREADS=value)
    yield demo("generates more than the context", "--max_generated_tokens", "100000")
    beyond = ("--input_prompts", "beyond.json")
    yield demo("token beyond the matrix", *beyond, prepare=token_beyond)
    for words in ([""], ["model", "--batch_size", "3"], ["model", "--block_size", "33"],
                  ["model", "--optimizations", "x"], ["pipe"], ["."], [LONG]):  # fmt: skip
        yield program("runtime.dry_run", "--device", "N150", "--model", *words)
    for value in ("", ",", "N150,"):
        yield program("perf.host_speed", "--devices", value)
    for value in ("pipe", "."):
        yield program("lt", "table", "--out", value)


def token_beyond(folder: Path) -> None:
    """The tokenizer knows a word of the prompt for which the weights have no row."""
    write("beyond.json", '[{"prompt": "say xyzzy"}]')(folder)
    path = folder / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    token = content["added_tokens"][-1]
    content["added_tokens"].append(token | {"id": token["id"] + 1, "content": "xyzzy"})
    path.write_text(json.dumps(content))


def tools() -> Iterator[Case]:
    """The rest of the programs."""
    for option in ("--models", "--devices"):
        for value in ("", ",", "x", LONG, "a b", "☃"):
            yield program("lt", "table", option, value, "--dry")
    for value in NUMBERS:
        yield program("lt", "table", "--timeout", value, "--dry")
        yield program("runtime.dry_run", "--model", "x", "--device", "N1", "--layers", value)
        yield program("models.checkpoints.convert", "--model", "model", "--layers", value)
    for command in ("nothing", "", "'", "pytest '", "table table", LONG):
        yield program("lt", command, "--dry")
    yield program("lt")
    yield program("lt", "--search")
    yield program("lt", "table", "--search")
    for module in ("models.checkpoints.convert", "perf.accuracy"):
        for value in ("", "x", LONG, "pipe", "binary"):
            yield program(module, "--model", value)
            yield program(module, "--device", value)
        yield program(module, "--optimizations", "x")
    yield program("models.checkpoints.convert", "--model", "model", "--cache", "binary/below")
    yield program("models.checkpoints.convert", "--model", "model", "--pad_mlp_cores", "9")
    for value in NUMBERS:
        yield program("perf.accuracy", "--tokens", value, "--model", "nowhere")
        yield program("perf.host_speed", "--steps", value, "--devices", "x")
    yield program("perf.calibrate", "--splits", "x")
    yield program("perf.report", "--nothing")
    yield program("perf.gate", "--nothing")
    yield program("runtime.dry_run", "--model", "nowhere", "--device", "N150")
    yield program("runtime.dry_run", "--model", "nowhere", "--device", "x")
    yield program("backends.selftest", "--device", "x")


def all_cases() -> list[Case]:
    """Every case, in a fixed order."""
    sources = (predictions, sweeps, serving, rarely_used, tools)
    return [case for source in sources for case in source()]
