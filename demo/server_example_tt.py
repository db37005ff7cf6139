"""An OpenAI-compatible server of one model: vLLM's, over this repository's engines.

Checks what it was given, says how to talk to it, then runs vLLM's server in this process, whose
engine is a fork of it: torch and vLLM are imported once. Arguments that are not known here are
vLLM's own. The model runs in serving/worker.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # when run as a file

from backends.command import run
from models.numbers import argument
from runtime.settings import Settings
from serving import launch

SHUTDOWN_SECONDS = 30


def command_line(given: argparse.Namespace, settings: Settings, rest: list[str]) -> list[str]:
    """The arguments of vLLM's server."""
    launch.check_vllm()
    launch.check_port(given.host, given.port)
    words = ["--host", given.host, "--port", str(given.port)]
    for name, value in launch.engine_arguments(given, settings.checkpoint).items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    # after a signal: time for requests in flight, and to close the device
    return [*words, "--shutdown-timeout", str(SHUTDOWN_SECONDS), *rest]


def curl_line(given: argparse.Namespace) -> str:
    """How to ask the server something."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"temperature": 0, "messages": messages}
    address = f"http://{given.host}:{given.port}/v1/chat/completions"
    return f"curl {address} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def serve(entry: Any) -> None:
    """Run vLLM's server, which takes the death of its engine for an end like any other."""
    engines: list[Any] = []
    build_and_serve = entry.build_and_serve

    async def noted(*arguments: Any, **named: Any) -> Any:
        engines.extend(multiprocessing.active_children())
        return await build_and_serve(*arguments, **named)

    def is_news(record: logging.LogRecord) -> bool:
        """An engine that ended as it was told to is told of as an error, too."""
        return not engines or any(engine.exitcode != 0 for engine in engines)

    entry.build_and_serve = noted
    logging.getLogger("vllm.v1.engine.async_llm").addFilter(is_news)
    entry.main()
    for engine in engines:
        if engine.exitcode not in (0, -signal.SIGTERM):
            raise OSError(f"vLLM's engine ended with code {engine.exitcode}, and so the server")


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    launch.add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=argument("port"), default=8000)
    given, rest = parser.parse_known_args(arguments)
    settings = Settings.from_env()
    words = command_line(given, settings, rest)
    check = launch.start_check(given, settings)
    launch.fork_engine()
    from vllm.entrypoints.launchers.api_server import entry

    check()
    print(f"once it says 'Application startup complete':\n\n  {curl_line(given)}\n", flush=True)
    sys.argv[1:] = words
    serve(entry)


if __name__ == "__main__":
    run(main, "server_example_tt")
