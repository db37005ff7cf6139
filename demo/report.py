"""What a demo prints: iterations, every user's text, checks of the texts, the summary table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loguru import logger

from backends.device_specs import SPECS
from demo.cases import Case
from models.numbers import counted
from perf.metrics import (
    FIRST_PREFILL,
    SPEED_DEFINITION,
    TTFT_DEFINITION,
    WHOLE_TTFT_DEFINITION,
    Metrics,
)
from runtime.images import ImageRequest

if TYPE_CHECKING:
    from perf.predict.figures import Prediction
    from perf.profiler import Profiler
    from runtime.prompts import Prompt
    from runtime.requests import Request, Step
    from runtime.tokenizer import Tokenizer

LONG_PROMPT, SHOWN = 400, 100  # characters: longer prompts show their first and last ones


def iteration_line(iteration: int, step: Step) -> str:
    """Speed of one decode iteration."""
    speed = 1 / step.seconds
    return (
        f"Iteration {iteration}: {1000 * step.seconds:.1f} ms @ {speed:.2f} tok/s/user "
        f"({speed * len(step.tokens):.1f} tok/s throughput)"
    )


def print_opening(case: Case, model: str, device: str, backend: str) -> None:
    """What is about to happen, in plain words."""
    chips = counted(SPECS[device].num_chips, "chip")
    where = {
        "silicon": f"{device} ({chips})",
        "dry-run": f"a mocked {device} ({chips}): TT-NN checks every call, nothing is computed",
        "emulator": f"an emulated {device} ({chips}): this computer calculates what the chips "
        "would. Figures marked host are its own clock, modelled ones are predictions for the "
        "product",
    }[backend]
    logger.info(
        f"{model} answers {counted(case.users, 'user')}, at most "
        f"{counted(case.max_generated_tokens, 'token')} each, on {where}."
    )


def print_long_factors(model: str, short: int, requests: Sequence[Request]) -> None:
    """Say where an answer that ends early would have had other factors in Hugging Face."""
    crossing = [r for r in requests if len(r.prompt) <= short < r.cache_length]
    if crossing:
        logger.info(
            f"{counted(len(crossing), 'prompt')} may grow past the {short} tokens that "
            f"{model} was first trained on: the rotary factors of long "
            "contexts are used from the start, where transformers changes to them on the way"
        )


def print_tokens(step: Step, tokenizer: Tokenizer) -> None:
    """Every user's newest token."""
    for user, token in sorted(step.tokens.items()):
        logger.info(f"User {user}: {token} {tokenizer.decode([token], skip_special=False)!r}")


def print_prompt(batch: int, user: int, prompt: Prompt) -> None:
    """What a user asked."""
    text = prompt.text
    if len(text) > LONG_PROMPT:
        text = f"{text[:SHOWN]} <long prompt not printed in full> {text[-SHOWN:]}"
    logger.info(f"==REPEAT BATCH {batch}\n==USER {user} - PROMPT\n{text}")


def print_answers(
    batch: int, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> None:
    """Prompt and answer of every user."""
    for user, (prompt, tokens) in enumerate(zip(prompts, answers, strict=True)):
        print_prompt(batch, user, prompt)
        logger.info(f"==USER {user} - OUTPUT\n{tokenizer.decode(tokens).strip()}\n")


def image_rows(requests: Sequence[Request], most: int = 4) -> list[tuple[str, str]]:
    """Which images the first users saw."""
    seen = [
        (f"Image of user {user}", str(image))
        for user, request in enumerate(requests)
        if isinstance(request, ImageRequest)
        for image in request.images
    ]
    more = [("", f"and {len(seen) - most} more")] if len(seen) > most else []
    return [*seen[:most], *more]


def needles_found(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> tuple[int, int]:
    """How many users found the fact hidden in their context, of how many that had one."""
    asked = [
        prompt.answer in tokenizer.decode(tokens)
        for prompt, tokens in zip(prompts, answers, strict=True)
        if prompt.answer is not None
    ]
    return sum(asked), len(asked)


def users_with_garbage(answers: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[int]:
    """Users whose answer has a special token before its end token: a sign of broken numbers."""
    found = []
    for user, tokens in enumerate(answers):
        ends = [i for i, token in enumerate(tokens) if token in tokenizer.eos_ids]
        body = tokens[: ends[0]] if ends else tokens
        if any(token in tokenizer.special_ids for token in body):
            found.append(user)
    return found


def print_summary(
    title: str,
    metrics: Metrics,
    prediction: Prediction | None,
    rows: Sequence[tuple[str, str]] = (),
    *,
    measured_on: str,
    device: str,
    whole_ttft: bool = False,
) -> None:
    """The table: wall-clock figures, and beside them those the performance model gives."""
    table = [
        *((name, value, "") for name, value in rows),
        ("Prefill compile time", compile_time(metrics), ""),
        ("Decode compile time", f"{metrics.compile_decode_s:.2f} s", ""),
        ("Prefill of all users", f"{metrics.whole_ttft_ms:.2f} ms", ""),
        ("Time to first token per user", f"{metrics.ttft_ms:.2f} ms", modelled_ttft(prediction)),
        ("Prefill speed", f"{metrics.prefill_tokens_per_s:.1f} tok/s", ""),
        ("Decode iteration", f"{metrics.decode_ms:.2f} ms", modelled_iteration(prediction)),
        (
            "Decode speed",
            f"{metrics.tokens_per_s_per_user:.2f} tok/s/user",
            modelled_speed(prediction),
        ),
        ("Decode throughput", f"{metrics.tokens_per_s:.2f} tok/s", ""),
    ]
    table += [
        (f"Decode speed at token {n}", f"{speed:.2f} tok/s/user", "")
        for n, speed in metrics.at_token.items()
    ]
    heads = ("", measured_on, f"modelled for {device} (80 % interval)" if prediction else "")
    names, values = (max(len(row[i]) for row in (heads, *table)) for i in (0, 1))
    lines = [f"{a:<{names}}  {b:<{values}}  {c}".rstrip() for a, b, c in (heads, *table)]
    logger.info("\n".join([f"=== {title} ===", *lines]))
    ttft = metrics.whole_ttft_ms if whole_ttft else metrics.ttft_ms
    logger.info(f"Average Time to First Token (TTFT): {ttft:.2f} ms [{measured_on}]")
    print_average_speed(metrics, measured_on)
    definition = WHOLE_TTFT_DEFINITION if whole_ttft else TTFT_DEFINITION
    first = metrics.compile_prefill_s is None
    logger.info(definition.replace("compiled ", "") + FIRST_PREFILL if first else definition)
    logger.info(SPEED_DEFINITION)
    if prediction is not None:
        logger.info(f"Modelled figures assume {prediction.assumes}")


def compile_time(metrics: Metrics) -> str:
    """How long the first prefill took, where it was run apart."""
    seconds = metrics.compile_prefill_s
    return "not run apart" if seconds is None else f"{seconds:.2f} s"


def modelled_ttft(prediction: Prediction | None) -> str:
    """Predicted time to first token, with its interval."""
    if prediction is None:
        return ""
    low, high = prediction.interval["ttft_ms"]
    return f"{prediction.ttft_ms:.2f} ms ({low:.1f} to {high:.1f})"


def modelled_iteration(prediction: Prediction | None) -> str:
    """Predicted time of a decode iteration, and what bounds it."""
    if prediction is None:
        return ""
    return f"{prediction.decode.ms:.2f} ms, mostly {prediction.decode.bound}-bound"


def modelled_speed(prediction: Prediction | None) -> str:
    """Predicted decode speed, with its interval."""
    if prediction is None:
        return ""
    low, high = prediction.interval["tokens_per_s_per_user"]
    return f"{prediction.tokens_per_s_per_user:.2f} tok/s/user ({low:.1f} to {high:.1f})"


def print_average_speed(metrics: Metrics, measured_on: str) -> None:
    """The decode line that tools read."""
    logger.info(
        f"Average speed: {metrics.decode_ms:.2f} ms @ {metrics.tokens_per_s_per_user:.2f} "
        f"tok/s/user ({metrics.tokens_per_s:.2f} tok/s throughput) [{measured_on}]"
    )


def title_of(case: Case, model: str, device: str, backend: str) -> str:
    """What ran, in a few words."""
    mesh = "x".join(map(str, SPECS[device].mesh_shape))
    return f"{model} on {device} {mesh} ({backend}): {case.id}, {counted(case.users, 'user')}"


def prompt_rows(case: Case, requests: Sequence[Request], prefill_len: int) -> list[tuple[str, str]]:
    """What the users asked."""
    longest = max(len(request.prompt) for request in requests)
    return [
        ("Prompts", case.input_prompts),
        ("Longest prompt", f"{longest} tokens, prefilled as {prefill_len}"),
        *image_rows(requests),
    ]


def timing_rows(loading: Profiler, profiler: Profiler) -> list[tuple[str, str]]:
    """Times of the parts that are no figure of the model."""
    return [
        ("Reading prompts", f"{loading.total('loading_inputs'):.2f} s"),
        ("Model loading", f"{loading.total('loading_model'):.2f} s"),
        ("All batches", f"{profiler.total('run'):.2f} s"),
    ]
