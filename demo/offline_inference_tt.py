"""Prompts answered by vLLM in this process, without a server: continuous batching, and its figures.

The times are this program's clock around vLLM's; what they mean depends on the backend that the
worker names when it starts. The model runs in serving/worker.py.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # when run as a file

from loguru import logger

from backends import command
from models.numbers import argument
from runtime.find import find_prompts
from runtime.prompts import load_prompts
from runtime.settings import Settings
from serving import launch
from serving.figures import Answer, Figures, show
from serving.options import serving_device


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    launch.add_arguments(parser)
    parser.add_argument(
        "--prompts_json", default="input_data_questions_prefill_128", help="file or sample set"
    )
    parser.add_argument(
        "--num_repeat_prompts",
        type=argument("repeat_batches"),
        default=1,
        help="times to ask them all",
    )
    parser.add_argument(
        "--max_tokens",
        type=argument("max_generated_tokens"),
        default=128,
        help="tokens of an answer",
    )
    parser.add_argument(
        "--greedy_sampling", action="store_true", help="else temperature 1, top-k 10, top-p 0.9"
    )
    parser.add_argument("--async_engine", action="store_true", help="use vLLM's streaming engine")
    parser.add_argument(
        "--measure_perf", action="store_true", help="random prompts, all tokens, figures"
    )
    parser.add_argument(
        "--perf_prompt_len", type=argument("prefill_len"), default=128, help="tokens"
    )
    return parser.parse_args(arguments)


def prompts_of(given: argparse.Namespace, tokenizer: Any, vocab_size: int) -> list[Any]:
    """Token ids of prompts, in the chat template that the model brings; random ones to measure."""
    if given.measure_perf:
        draw = random.Random(0)
        count, length = given.max_seqs_in_batch * given.num_repeat_prompts, given.perf_prompt_len
        ids = [[draw.randrange(vocab_size) for _ in range(length)] for _ in range(count)]
    else:
        prompts = load_prompts(find_prompts(given.prompts_json), instruct=True)
        ids = [_ids(prompt.text, tokenizer) for prompt in prompts] * given.num_repeat_prompts
    return [{"prompt_token_ids": row} for row in ids]


def _ids(text: str, tokenizer: Any) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer.encode(text))
    said = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False))


def sampling_of(given: argparse.Namespace) -> Any:
    """vLLM's sampling parameters; a measurement generates all its tokens."""
    from vllm import SamplingParams

    chosen: dict[str, Any] = {"temperature": 0.0}
    if not given.greedy_sampling:
        chosen = {"temperature": 1.0, "top_k": 10, "top_p": 0.9}
    return SamplingParams(max_tokens=given.max_tokens, ignore_eos=given.measure_perf, **chosen)


def run(given: argparse.Namespace, engine: dict[str, Any]) -> list[Answer]:
    """Answers of vLLM's batch interface."""
    from vllm import LLM

    llm = LLM(**engine, disable_log_stats=False)
    prompts = prompts_of(given, llm.get_tokenizer(), llm.model_config.get_vocab_size())
    outputs = llm.generate(prompts, sampling_of(given))
    answers = []
    for output in outputs:
        times = output.metrics
        answers.append(
            Answer(
                text=output.outputs[0].text,
                tokens=len(output.outputs[0].token_ids),
                ttft_s=times.first_token_latency,
                decode_s=times.last_token_ts - times.first_token_ts,
            )
        )
    return answers


async def run_async(given: argparse.Namespace, engine: dict[str, Any]) -> list[Answer]:
    """Answers of vLLM's streaming engine, all asked at once."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine))
    sampling = sampling_of(given)

    async def ask(number: int, prompt: Any) -> Answer:
        begin = time.perf_counter()
        first = last = begin
        text, tokens = "", 0
        async for output in llm.generate(prompt, sampling, str(number)):
            last = time.perf_counter()
            first = last if first == begin else first
            text, tokens = output.outputs[0].text, len(output.outputs[0].token_ids)
        return Answer(text, tokens, first - begin, last - first)

    try:
        prompts = prompts_of(given, llm.get_tokenizer(), llm.model_config.get_vocab_size())
        return list(await asyncio.gather(*(ask(i, p) for i, p in enumerate(prompts))))
    finally:
        llm.shutdown()


def main(arguments: list[str] | None = None) -> None:
    """Answer, then print answers and figures."""
    given = parse(arguments)
    settings = Settings.from_env()
    engine = launch.engine_arguments(given, settings.checkpoint)
    find_prompts(given.prompts_json)
    if given.measure_perf and given.perf_prompt_len >= given.max_model_len:
        raise ValueError(
            f"--perf_prompt_len {given.perf_prompt_len} leaves no room for an answer: use less, "
            f"or a --max_model_len above {given.max_model_len}"
        )
    launch.check_vllm()
    launch.start_check(given, settings)()
    try:
        begin = time.perf_counter()
        answers = (
            asyncio.run(run_async(given, engine)) if given.async_engine else run(given, engine)
        )
        gc.collect()  # vLLM's engine wants to end before the interpreter does
        logger.info(f"{len(answers)} answers, {time.perf_counter() - begin:.1f} s with start-up")
    except RuntimeError as error:
        raise OSError(f"vLLM's engine ended ({error}); the reason stands above") from None
    if not given.measure_perf:
        for number, answer in enumerate(answers):
            print(f"--- {number}: {answer.text}")
    device = serving_device(given.override_tt_config, settings).name
    show(Figures.of(answers), settings.backend, device)


if __name__ == "__main__":
    command.run(main, "offline_inference_tt")
