"""A real server of the default model on the emulator, asked by the openai package."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm")

import openai

from perf.record import read_records
from runtime.find import Model, find_model, find_prompts
from runtime.prompts import load_prompts
from runtime.requests import Request
from tests.model.helpers import answers_as_in_demos
from tests.served.server import ROOT, Server, start
from tests.served.soak import memory_mib, soak

USERS, CONTEXT = 32, 512
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about a cat.",
    "What is two plus two?",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for this file; its last test stops it."""
    running = start(tmp_path_factory.mktemp("server") / "log.txt", users=USERS, context=CONTEXT)
    yield running
    running.process.kill()
    running.process.wait()


def answers_of_the_demo(model: Model, questions: list[str], count: int) -> list[str]:
    """The same questions answered by the generator that the demos use."""
    prompts = [model.tokenizer.encode(question, instruct=True) for question in questions]
    tokens = answers_as_in_demos(
        [Request(prompt, count) for prompt in prompts],
        max_batch_size=USERS, max_seq_len=CONTEXT, num_blocks=USERS * CONTEXT // 32,
        eos_ids=model.tokenizer.eos_ids,
    )  # fmt: skip
    return [model.tokenizer.decode(row) for row in tokens]


def test_32_concurrent_streams_say_what_the_demo_says(server: Server) -> None:
    prompts = load_prompts(find_prompts("vllm_server_prompts.json"), instruct=True)
    questions = [prompt.text for prompt in prompts]
    assert len(set(questions)) == USERS

    def stream(question: str) -> str:
        events = server.ask(question, stream=True)
        return "".join(event.choices[0].delta.content or "" for event in events)

    with ThreadPoolExecutor(USERS) as pool:
        found = list(pool.map(stream, questions))
    assert found == answers_of_the_demo(find_model(None), questions, 24)
    assert "serving on emulator (backends.emulator) as N150" in server.log.read_text()


def test_sampling_parameters_act(server: Server) -> None:
    answer = server.ask(QUESTIONS[0], stop=["France"])
    assert "France" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"

    answer = server.ask(QUESTIONS[0], logprobs=True, top_logprobs=3, max_tokens=4)
    for place in answer.choices[0].logprobs.content:
        assert len(place.top_logprobs) == 3
        assert place.logprob == max(other.logprob for other in place.top_logprobs) <= 0

    drawn = [server.ask(QUESTIONS[2], temperature=1.5, seed=s) for s in (1, 1, 2)]
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
    answer = server.ask(QUESTIONS[3], response_format=wanted, max_tokens=40)
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


def test_the_client_measures_and_records_what_answered(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "demo" / "example_requests_client.py")]
    command += ["--base_url", server.url, "--num_concurrent", "8", "--max_tokens", "4"]
    command += ["--num_requests", "12", "--ttft_limit_ms", "1e8", "--plot", "latency.png"]
    env = {**os.environ, "MESH_DEVICE": "T3K"}  # of the client, which says nothing of the server
    result = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "this computer's clock, emulator, N150" in result.stdout
    for word in ("TTFT [ms]", "tokens/s/user", "goodput", "(12 good)"):
        assert word in result.stdout
    (record,) = read_records(tmp_path / "generated" / "benchmark_records.jsonl")
    found = {name: record[name] for name in ("backend", "device", "mesh_shape", "provenance")}
    wanted = {"backend": "emulator", "device": "N150", "mesh_shape": [1, 1], "provenance": "host"}
    assert found == wanted and record["optimizations"] == "performance"
    assert (tmp_path / "latency.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("seconds", "least"), [(20, 2), pytest.param(60, 6, marks=pytest.mark.full)]
)
def test_a_soak_leaves_nothing_behind(server: Server, seconds: int, least: int) -> None:
    found = soak(server, seconds)
    assert not found.errors
    kinds = ("compared", "drawn", "left", "refused")
    assert all(found.requests.get(kind, 0) >= least for kind in kinds), found.requests
    assert found.pages_in_use == found.running == 0


def test_repeated_requests_take_no_more_memory(server: Server) -> None:
    """One at a time, so that every step has the shapes of an earlier one."""

    def ask_all() -> float:
        for question in QUESTIONS * 4:
            server.ask(question, max_tokens=8)
        return sum(map(memory_mib, (server.process.pid, server.engine)))

    ask_all()
    before = ask_all()
    assert ask_all() - before < 8  # half a MiB for each request


def test_sigterm_lets_requests_in_flight_end(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.ask, "Tell a story.", max_tokens=40)
        server.wait_until("vllm:num_requests_running", 1)
        server.process.send_signal(signal.SIGTERM)
        assert answer.result(timeout=60).usage.completion_tokens == 40
    assert server.process.wait(timeout=60) == 0
    said = server.log.read_text()
    assert "the device is closed" in said and "Traceback" not in said


def test_a_killed_engine_is_reported_and_ends_the_server(tmp_path: Path) -> None:
    server = start(tmp_path / "log.txt", users=2, context=CONTEXT)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.ask, "Tell a story.", max_tokens=400)
        server.wait_until("vllm:num_requests_running", 1)
        os.kill(server.engine, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            answer.result(timeout=60)
    assert server.process.wait(timeout=60) > 0
    assert "error: vLLM's engine ended with code -9" in server.log.read_text()
