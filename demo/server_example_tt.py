"""An OpenAI-compatible server of one model: vLLM's, over this repository's engines.

Checks what it was given, says how to talk to it, then becomes vLLM's server. Arguments that are
not known here are vLLM's own. The model runs in serving/worker.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # when run as a file

from backends.command import run
from models.numbers import argument
from runtime.settings import Settings
from serving import launch

SERVER = "vllm.entrypoints.openai.api_server"


def command_line(given: argparse.Namespace, settings: Settings, rest: list[str]) -> list[str]:
    """The command that serves."""
    launch.check_vllm()
    launch.check_port(given.host, given.port)
    words = [sys.executable, "-m", SERVER, "--host", given.host, "--port", str(given.port)]
    for name, value in launch.engine_arguments(given, settings.checkpoint).items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return [*words, *rest]


def curl_line(given: argparse.Namespace) -> str:
    """How to ask the server something."""
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    address = f"http://{given.host}:{given.port}/v1/chat/completions"
    return f"curl {address} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def main(arguments: list[str] | None = None) -> None:
    """Start serving; does not return."""
    parser = argparse.ArgumentParser(description=__doc__)
    launch.add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=argument("port"), default=8000)
    given, rest = parser.parse_known_args(arguments)
    settings = Settings.from_env()
    words = command_line(given, settings, rest)
    launch.check_run(given, settings)
    print(f"once it says 'Application startup complete':\n\n  {curl_line(given)}\n", flush=True)
    os.execv(words[0], words)


if __name__ == "__main__":
    run(main, "server_example_tt")
