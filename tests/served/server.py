"""A server of the default model in a process of its own, for tests that ask it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

ROOT = Path(__file__).resolve().parents[2]
MODEL = "SmolLM2-135M-Instruct"
START_SECONDS = 300  # far more than it takes, for machines that do much else
OUTER = ("TT_BACKEND", "MESH_DEVICE", "FAKE_DEVICE", "HF_MODEL", "LLAMA_DIR")


@dataclass
class Server:
    """A running server, and what it said."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=120)

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
        defaults: dict[str, Any] = {"model": MODEL, "temperature": 0.0, "max_tokens": 24}
        messages = [{"role": "user", "content": question}]
        return self.client.chat.completions.create(**{"messages": messages, **defaults, **options})

    def wait_until(self, name: str, value: float) -> None:
        deadline = time.monotonic() + 60
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.1)

    def kill(self) -> None:
        """Without a chance to end in order; its engine must not stay behind."""
        status = Path(f"/proc/{self.engine}/status")
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 60
        while status.exists() and "State:\tZ" not in status.read_text():
            assert time.monotonic() < deadline, "the engine of a killed server goes on"
            time.sleep(0.1)

    @property
    def engine(self) -> int:
        """The process that runs the model."""
        command = ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (found,) = (line.split()[0] for line in listing.splitlines() if "EngineCore" in line)
        return int(found)


def start(
    log: Path,
    *arguments: str,
    users: int,
    context: int,
    env: Mapping[str, str] | None = None,
) -> Server:
    """Start a server and wait until it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if k not in OUTER and not k.startswith("VLLM_")}
    command: Sequence[str] = [
        sys.executable, "demo/server_example_tt.py", "--port", str(port),
        "--max_seqs_in_batch", str(users), "--max_model_len", str(context), *arguments,
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**kept, **(env or {})}, stdout=out, stderr=subprocess.STDOUT
        )
    server = Server(process, port, log)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.get("/health")
            return server
        except OSError:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)
