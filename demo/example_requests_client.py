"""A client that asks a server many prompts at once and measures the answers as they stream.

Talks to any OpenAI-compatible server, by the `openai` package. Appends a record, draws a plot of
latencies. The figures are defined in serving/figures.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # when run as a file

from backends.command import run
from models.fields import shown
from models.numbers import argument
from models.outputs import PICTURES, check_file, output_file
from perf.record import (
    RECORDS,
    BenchmarkRecord,
    append_record,
    current_command,
    current_commit,
    software_versions,
)
from runtime.find import find_prompts
from runtime.prompts import load_prompts
from serving.figures import Answer, Figures, Place, provenance, show

PLOT = Path("generated/serving_latency.png")


def address(text: str) -> str:
    """The address of a server, for argparse's `type`."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is none
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no address: use http://host:port/v1")
    return text


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_concurrent", type=argument("requests"), default=32)
    parser.add_argument(
        "--num_requests", type=argument("requests"), help="in all; without it one of each prompt"
    )
    parser.add_argument("--prompt_json_path", default="vllm_server_prompts.json")
    parser.add_argument("--base_url", type=address, default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="without it the server's first")
    parser.add_argument("--max_tokens", type=argument("max_generated_tokens"), default=128)
    parser.add_argument("--temperature", type=argument("temperature"), default=0.0)
    parser.add_argument("--ignore_eos", action="store_true", help="always max_tokens")
    parser.add_argument(
        "--ttft_limit_ms", type=argument("limit_ms"), help="what a good request keeps"
    )
    parser.add_argument(
        "--token_limit_ms", type=argument("limit_ms"), help="the same, between tokens"
    )
    parser.add_argument("--plot", type=output_file(*PICTURES), default=PLOT)
    parser.add_argument("--print_outputs", action="store_true")
    return parser.parse_args(arguments)


async def ask(client: Any, given: argparse.Namespace, prompt: str, start: float) -> Answer:
    """Stream one answer."""
    begin = time.perf_counter()
    first = last = None
    words, tokens = [], 0
    stream = await client.chat.completions.create(
        model=given.model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": given.ignore_eos},
    )
    async for event in stream:
        if event.usage is not None:
            tokens = event.usage.completion_tokens
        if event.choices and event.choices[0].delta.content:
            last = time.perf_counter()
            first = first or last
            words.append(event.choices[0].delta.content)
    end = time.perf_counter()
    first, last = first or end, last or end
    return Answer("".join(words), tokens, first - begin, last - first, begin - start)


async def ask_all(given: argparse.Namespace, prompts: list[str]) -> list[Answer]:
    """All prompts, never more than num_concurrent at a time."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=given.base_url, api_key="none", max_retries=0) as client:
        if given.model is None:
            given.model = (await client.models.list()).data[0].id
        places = asyncio.Semaphore(given.num_concurrent)
        start = time.perf_counter()

        async def in_turn(prompt: str) -> Answer:
            async with places:
                return await ask(client, given, prompt, start)

        return list(await asyncio.gather(*map(in_turn, prompts)))


def record(given: argparse.Namespace, figures: Figures, place: Place) -> None:
    """One line beside those of the demos."""
    is_measured = place.backend == "silicon"
    append_record(
        BenchmarkRecord(
            model=given.model,
            backend=place.backend,
            device=place.device,
            mesh_shape=place.mesh_shape,
            data_parallel=place.data_parallel,
            batch_size=given.num_concurrent,
            prefill_len=0,
            generated_tokens=figures.tokens,
            optimizations=place.optimizations,
            provenance=provenance(place.backend),
            ttft_ms=figures.ttft_ms[50] if is_measured else None,
            tokens_per_s_per_user=figures.tokens_per_s_per_user[50] if is_measured else None,
            tokens_per_s=figures.tokens_per_s if is_measured else None,
            host_ttft_ms=figures.ttft_ms[50],
            host_tokens_per_s_per_user=figures.tokens_per_s_per_user[50],
            case="example_requests_client",
            versions=software_versions(),
            commit=current_commit(),
            command=current_command(),
        )
    )


def plot(answers: list[Answer], path: Path) -> None:
    """Each request as a bar over time: waiting for its first token, then its answer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    rows = range(len(answers))
    starts = [answer.start_s for answer in answers]
    waits = [answer.ttft_s for answer in answers]
    axes.barh(rows, waits, left=starts, color="#c9a227", label="to first token")
    lefts = [start + wait for start, wait in zip(starts, waits, strict=True)]
    decodes = [answer.decode_s for answer in answers]
    axes.barh(rows, decodes, left=lefts, color="#2a6f97", label="rest of answer")
    axes.set(xlabel="seconds", ylabel="request", title="Latency of requests, as the client saw it")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Ask, measure, show, record."""
    given = parse(arguments)
    path = find_prompts(given.prompt_json_path)
    prompts = [prompt.text for prompt in load_prompts(path, instruct=True)]
    check_file(RECORDS)
    try:
        from openai import OpenAIError
    except ModuleNotFoundError:
        raise ValueError("the openai package is not installed: run make setup-vllm") from None
    count = given.num_requests or len(prompts)
    prompts = [prompts[i % len(prompts)] for i in range(count)]
    try:
        answers = asyncio.run(ask_all(given, prompts))
    except OpenAIError as error:
        raise ConnectionError(f"{given.base_url}: {error}; is it up (make serve)?") from None
    if given.print_outputs:
        print(json.dumps([answer.text for answer in answers], indent=1, ensure_ascii=False))
    limits = {"ttft_limit_ms": given.ttft_limit_ms, "token_limit_ms": given.token_limit_ms}
    figures = Figures.of(answers, **limits)
    place = Place.of_server(given.base_url)
    show(figures, place.backend, place.device)
    record(given, figures, place)
    plot(answers, given.plot)
    print(f"plot: {given.plot}")


if __name__ == "__main__":
    run(main, "example_requests_client")
