"""What a demo prints: iterations, every user's text, checks of the texts, the summary table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loguru import logger

from perf.metrics import SPEED_DEFINITION, TTFT_DEFINITION, TTFT_WHOLE_DEFINITION, Metrics

if TYPE_CHECKING:
    from runtime.generator import Step
    from runtime.prompts import Prompt
    from runtime.tokenizer import Tokenizer

EVERY_ITERATION_UNTIL, THEN_EVERY = 200, 100
LONG_PROMPT, SHOWN = 400, 100  # characters: longer prompts show their first and last ones


def print_iteration(iteration: int, step: Step) -> None:
    """Speed of one decode iteration."""
    if iteration >= EVERY_ITERATION_UNTIL and iteration % THEN_EVERY:
        return
    speed = 1 / step.seconds
    logger.info(
        f"Iteration {iteration}: {1000 * step.seconds:.1f} ms @ {speed:.2f} tok/s/user "
        f"({speed * len(step.tokens):.1f} tok/s throughput)"
    )


def print_tokens(step: Step, tokenizer: Tokenizer) -> None:
    """Every user's newest token."""
    for user, token in sorted(step.tokens.items()):
        logger.info(f"User {user}: {token} {tokenizer.decode([token], skip_special=False)!r}")


def print_answers(
    batch: int, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> None:
    """Prompt and answer of every user."""
    for user, (prompt, tokens) in enumerate(zip(prompts, answers, strict=True)):
        text = prompt.text
        if len(text) > LONG_PROMPT:
            text = f"{text[:SHOWN]} <long prompt not printed in full> {text[-SHOWN:]}"
        logger.info(f"==REPEAT BATCH {batch}\n==USER {user} - PROMPT\n{text}")
        logger.info(f"==USER {user} - OUTPUT\n{tokenizer.decode(tokens).strip()}\n")


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


def print_summary(title: str, metrics: Metrics, rows: Sequence[tuple[str, str]] = ()) -> None:
    """The table of figures, the lines that tools read, and what the figures mean."""
    table = [
        *rows,
        ("Prefill compile time", f"{metrics.compile_prefill_s:.2f} s"),
        ("Decode compile time", f"{metrics.compile_decode_s:.2f} s"),
        ("Time to first token", f"{metrics.ttft_ms:.2f} ms"),
        ("Prefill speed", f"{metrics.prefill_tokens_per_s:.1f} tok/s"),
        ("Decode iteration", f"{metrics.decode_ms:.2f} ms"),
        ("Decode speed", f"{metrics.tokens_per_s_per_user:.2f} tok/s/user"),
        ("Decode throughput", f"{metrics.tokens_per_s:.2f} tok/s"),
    ]
    table += [
        (f"Decode speed at token {n}", f"{speed:.2f} tok/s/user")
        for n, speed in metrics.at_token.items()
    ]
    width = max(len(name) for name, _ in table)
    lines = [f"=== {title} ===", *(f"{name:<{width}}  {value}" for name, value in table)]
    logger.info("\n".join(lines))
    logger.info(f"Average Time to First Token (TTFT): {metrics.ttft_ms:.2f} ms")
    print_average_speed(metrics)


def print_average_speed(metrics: Metrics) -> None:
    """The decode line that tools read."""
    logger.info(
        f"Average speed: {metrics.decode_ms:.2f} ms @ {metrics.tokens_per_s_per_user:.2f} "
        f"tok/s/user ({metrics.tokens_per_s:.2f} tok/s throughput)"
    )


def print_definitions(*, ttft_per_user: bool = True) -> None:
    """How the figures above are defined."""
    logger.info(TTFT_DEFINITION if ttft_per_user else TTFT_WHOLE_DEFINITION)
    logger.info(SPEED_DEFINITION)
