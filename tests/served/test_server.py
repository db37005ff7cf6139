"""A real server of the default model on the emulator, asked by the openai package."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm")

import openai

from runtime.find import Model, find_model
from runtime.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
USERS, CONTEXT = 8, 512
START_SECONDS = 300  # far more than it takes, for machines that do much else
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
    "Write one sentence about a cat.",
    "How many days has a week?",
    "What do bees make?",
    "Say hello in Spanish.",
    "What is two plus two?",
]


@dataclass
class Server:
    """A running server, and what it said."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none",
                             max_retries=0, timeout=120)  # fmt: skip

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def metric(self, name: str) -> float:
        """One of Prometheus's figures."""
        found = re.search(rf"^{name}\{{[^}}]*\}} (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found, name
        return float(found[1])

    def ask(self, question: str, **options: Any) -> Any:
        """One chat completion; greedy unless told otherwise."""
        defaults: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}
        messages = [{"role": "user", "content": question}]
        return self.client.chat.completions.create(
            **{"model": "SmolLM2-135M-Instruct", "messages": messages, **defaults, **options}
        )

    def wait_until(self, name: str, value: float) -> None:
        deadline = time.monotonic() + 60
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.1)


def start(log: Path) -> Server:
    """Start a server and wait until it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outer = ("TT_BACKEND", "MESH_DEVICE", "FAKE_DEVICE", "HF_MODEL", "LLAMA_DIR")
    env = {k: v for k, v in os.environ.items() if k not in outer and not k.startswith("VLLM_")}
    command = [sys.executable, "demo/server_example_tt.py", "--port", str(port)]
    command += ["--max_seqs_in_batch", str(USERS), "--max_model_len", str(CONTEXT)]
    command += ["--shutdown-timeout", "30"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    server = Server(process, port, log)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.get("/health")
            return server
        except OSError:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, log.read_text(errors="replace")[-3000:]
            time.sleep(0.3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for this file; its last test stops it."""
    running = start(tmp_path_factory.mktemp("server") / "log.txt")
    yield running
    running.process.kill()
    running.process.wait()


def answers_of_the_demo(model: Model, questions: list[str], count: int) -> list[str]:
    """The same questions answered by the generator that the demos use."""
    import backends

    backends.select("emulator")
    from models.kv_cache import CacheConfig
    from runtime.blueprint import LoadOptions
    from runtime.generator import Generator
    from runtime.loading import load_engines
    from runtime.requests import Request

    prompts = [model.tokenizer.encode(question, instruct=True) for question in questions]
    cache = CacheConfig(32, USERS * CONTEXT // 32)
    options = LoadOptions(max_batch_size=USERS, max_seq_len=CONTEXT, cache=cache)
    tokens: list[list[int]] = [[] for _ in prompts]
    with load_engines(options, Settings(backend="emulator")) as loaded:
        generator = Generator(loaded.engines, eos_ids=model.tokenizer.eos_ids)
        for step in generator.generate([Request(prompt, count) for prompt in prompts]):
            for user, token in step.tokens.items():
                tokens[user].append(token)
    return [model.tokenizer.decode(row) for row in tokens]


def test_concurrent_streams_say_what_the_demo_says(server: Server) -> None:
    def stream(question: str) -> str:
        events = server.ask(question, stream=True)
        return "".join(event.choices[0].delta.content or "" for event in events)

    with ThreadPoolExecutor(USERS) as pool:
        found = list(pool.map(stream, QUESTIONS))
    assert found == answers_of_the_demo(find_model(None), QUESTIONS, 24)
    assert "serving on emulator (backends.emulator) as N150" in server.log.read_text()


def test_sampling_parameters_act(server: Server) -> None:
    answer = server.ask(QUESTIONS[0], stop=["France"])
    assert "France" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"

    answer = server.ask(QUESTIONS[0], logprobs=True, top_logprobs=3, max_tokens=4)
    for place in answer.choices[0].logprobs.content:
        assert len(place.top_logprobs) == 3
        assert place.logprob == max(other.logprob for other in place.top_logprobs) <= 0

    drawn = [server.ask(QUESTIONS[3], temperature=1.5, seed=s) for s in (1, 1, 2)]
    texts = [answer.choices[0].message.content for answer in drawn]
    assert texts[0] == texts[1] != texts[2]

    answer = server.ask(QUESTIONS[0], extra_body={"min_tokens": 20})
    assert answer.usage.completion_tokens >= 20 > server.ask(QUESTIONS[0]).usage.completion_tokens

    answer = server.ask(QUESTIONS[0], logit_bias={"260": 100}, max_tokens=3)
    assert len(set(answer.choices[0].message.content.split())) == 1

    answer = server.ask(QUESTIONS[0], temperature=1.0, n=3, max_tokens=4)
    assert len(answer.choices) == 3


def test_structured_output_keeps_to_its_grammar(server: Server) -> None:
    answer = server.ask(
        QUESTIONS[1], extra_body={"structured_outputs": {"choice": ["Rome", "Oslo"]}}
    )
    assert answer.choices[0].message.content in ("Rome", "Oslo")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = server.ask(QUESTIONS[7], response_format=wanted, max_tokens=40)
    assert re.match(r'\{\s*"n"\s*:\s*[12]?', answer.choices[0].message.content)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extra_body": {"prompt_logprobs": 1}}, "prompt_logprobs is not supported"),
        ({"temperature": -1.0}, "temperature"),
        ({"model": "unknown"}, "unknown"),
        ({"messages": [{"role": "user", "content": "word " * CONTEXT}]}, str(CONTEXT)),
    ],
)
def test_bad_requests_are_refused_with_a_reason(
    server: Server, options: dict[str, Any], said: str
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as error:
        server.ask(QUESTIONS[0], **options)
    assert error.value.status_code in (400, 404) and said in str(error.value)
    assert server.get("/health") == ""


def test_a_client_that_disappears_leaves_no_pages_behind(server: Server) -> None:
    stream = server.ask("Tell a long story.", stream=True, max_tokens=400)
    for _ in zip(range(3), stream, strict=False):
        pass
    assert server.metric("vllm:num_requests_running") == 1
    stream.close()
    server.wait_until("vllm:num_requests_running", 0)
    server.wait_until("vllm:kv_cache_usage_perc", 0)


def test_sigterm_lets_requests_in_flight_end(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.ask, "Tell a story.", max_tokens=40)
        server.wait_until("vllm:num_requests_running", 1)
        server.process.send_signal(signal.SIGTERM)
        assert answer.result(timeout=60).usage.completion_tokens == 40
    assert server.process.wait(timeout=60) == 0
    assert "the device is closed" in server.log.read_text()


@pytest.mark.full
def test_a_killed_engine_is_reported_and_ends_the_server(tmp_path: Path) -> None:
    server = start(tmp_path / "log.txt")
    listing = subprocess.run(
        ["ps", "--ppid", str(server.process.pid), "-o", "pid=,args="],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (engine,) = (line.split()[0] for line in listing.splitlines() if "EngineCore" in line)
    os.kill(int(engine), signal.SIGKILL)
    assert server.process.wait(timeout=60) is not None
    assert "EngineDeadError" in server.log.read_text()
