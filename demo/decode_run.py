"""The course of the decode-only demo: prompts go through decode token by token, then answers.

A stress run uses every user's last positions again and again, so half a million tokens take no
more memory than a few thousand.
"""

from __future__ import annotations

import statistics
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from loguru import logger
from tqdm import tqdm

from demo import report
from demo.cases import (
    TSU_BANDS,
    TSU_ITERATIONS,
    TSU_MAX_OUTSIDE,
    TSU_MODEL,
    DecodeCase,
)
from demo.records import provenance_of, save_record
from demo.session import Session, fit_context, open_session
from perf.metrics import measure
from perf.profiler import Profiler
from runtime.find import encode_prompts, find_model, find_prompts
from runtime.generator import Generator
from runtime.prompts import Prompt, for_users, load_prompts
from runtime.requests import Request
from runtime.settings import Settings

KEPT_TOKENS = 512  # per user, of which the text is printed at the end
PRINTED = 200  # iterations printed one by one; later ones every thousandth


@dataclass
class DecodeLog:
    """What a run leaves behind, bounded whatever its length."""

    prompt_seconds: float = 0.0
    iteration_ms: array[float] = field(default_factory=lambda: array("f"))
    tokens: list[deque[int]] = field(default_factory=list)
    num_generated: list[int] = field(default_factory=list)


def run_decode_demo(case: DecodeCase, given: dict[str, Any], settings: Settings) -> None:
    """Run a case, print texts and speeds, fail where speed leaves its band."""
    if case.data_parallel != 1:
        raise ValueError(f"demo_decode runs one model: data_parallel {case.data_parallel} is not 1")
    path = find_prompts(case.input_prompts)
    model = find_model(settings.checkpoint, weights=case.weights)
    case = fit_context(case, given, model.config, [])
    instruct = case.instruct and model.tokenizer.is_instruct and case.weights != "random"
    prompts = for_users(load_prompts(path, instruct=instruct), case.batch_size)
    if case.weights == "random":
        prompts = [Prompt("This is a test")] * case.batch_size  # random weights answer nothing
    ids = encode_prompts(
        model,
        prompts,
        instruct=case.instruct and model.tokenizer.is_instruct,
        max_seq_len=case.max_seq_len,
        max_new_tokens=case.max_generated_tokens,
        wraps=case.stress_test,
    )
    requests = requests_of(case, ids)
    with open_session(case, settings, model, prompts_by_decode=True) as session:
        log = decode_all(session.generator, requests)
    for user, (prompt, tokens) in enumerate(zip(prompts, log.tokens, strict=True)):
        dropped = log.num_generated[user] - len(tokens)
        note = f" (after {dropped} tokens not kept)" if dropped else ""
        text = model.tokenizer.decode(list(tokens)).strip()
        logger.info(
            f"==USER {user} - PROMPT\n{prompt.text}\n==USER {user} - OUTPUT{note}\n{text}\n"
        )
    report_speed(session, case, log)


def requests_of(case: DecodeCase, prompts: Sequence[Sequence[int]]) -> list[Request]:
    """One request per user, all of which end at the same step.

    In a stress run a user's positions start again after its prompt, for ever, once its share of
    the cache is full; one clear line if a run that does not wrap needs more.
    """
    end, longest = case.max_seq_len, max(map(len, prompts))
    if case.paged_attention:
        pages = case.page_params
        end = min(end, pages.max_num_blocks // case.batch_size * pages.block_size)
    needed = case.start_pos + longest + (1 if case.stress_test else case.max_generated_tokens)
    if needed > end:
        raise ValueError(
            f"{needed} positions per user are needed (start_pos {case.start_pos}, prompt "
            f"{longest}, {case.max_generated_tokens} to generate), max_seq_len and page_params "
            f"give {end}: raise them, generate less, or use --stress_test 1 to wrap positions"
        )
    return [
        Request(
            prompt,
            case.max_generated_tokens + longest - len(prompt),
            sampling,
            max_positions=end if case.stress_test else None,
            start=case.start_pos,
        )
        for prompt, sampling in zip(prompts, case.sampling, strict=True)
    ]


def decode_all(generator: Generator, requests: Sequence[Request]) -> DecodeLog:
    """Feed prompts, then each user's own tokens, one step for all users at a time."""
    log = DecodeLog(
        tokens=[deque(maxlen=KEPT_TOKENS) for _ in requests], num_generated=[0 for _ in requests]
    )
    longest = max(len(request.prompt) for request in requests)
    num_steps = max(len(r.prompt) + r.max_new_tokens for r in requests) - 1
    steps = tqdm(
        generator.generate(requests), total=num_steps, desc="decode", leave=False, disable=None
    )
    for number, step in enumerate(steps):
        note_time(log, number - longest + 1, step.seconds, len(step.users))
        for user, token in step.tokens.items():
            log.tokens[user].append(token)
            log.num_generated[user] += 1
    return log


def note_time(log: DecodeLog, iteration: int, seconds: float, users: int) -> None:
    """Count a step to the prompts or to the answers, and print its speed now and then."""
    if iteration < 0:
        log.prompt_seconds += seconds
        return
    log.iteration_ms.append(1000 * seconds)
    if iteration < PRINTED or iteration % 1000 == 0:
        logger.info(
            f"Iteration {iteration}: {1000 * seconds:.1f} ms @ {1 / seconds:.2f} tok/s/user "
            f"({users / seconds:.1f} tok/s throughput)"
        )


def report_speed(session: Session, case: DecodeCase, log: DecodeLog) -> None:
    """Distribution of speeds after iteration 0, the record, and the band they must lie in."""
    profiler = Profiler()
    for ms in log.iteration_ms:
        profiler.add("inference_decode", ms / 1000)
    metrics = measure(profiler, users=case.batch_size, prefill_tokens=0)
    save_record(session, case, metrics, None, log.tokens, prefill_len=0)
    speeds = [1000 / ms for ms in log.iteration_ms[1:]]
    if not speeds:
        return
    ranked = sorted(speeds)
    low, high = ranked[int(0.05 * len(ranked))], ranked[int(0.95 * (len(ranked) - 1))]
    at_128 = f"{metrics.at_token[128]:.2f}" if 128 in metrics.at_token else "not reached"
    logger.info(
        f"tok/s/user: min {ranked[0]:.2f}, max {ranked[-1]:.2f}, "
        f"mean {statistics.fmean(speeds):.2f}, median {statistics.median(speeds):.2f}, "
        f"5th percentile {low:.2f}, 95th {high:.2f}, at token 128 {at_128}; "
        f"a band would be {low:.1f} to {ranked[-1]:.1f}"
    )
    logger.info(f"Prompts as decode: {log.prompt_seconds:.2f} s")
    report.print_average_speed(metrics, provenance_of(session))
    band = band_of(session, case)
    if band is None:
        logger.info(f"No tok/s/user band is checked: bands are for {TSU_MODEL} measured on TG")
    else:
        check_band(speeds, band)


def band_of(session: Session, case: DecodeCase) -> tuple[float, float] | None:
    """The band of this run's speed, where there is one."""
    measured = session.settings.backend == "silicon" and session.device == "TG"
    if not measured or case.stress_test or session.model.config.name != TSU_MODEL:
        return None
    layers = case.num_layers or session.model.config.num_layers
    return TSU_BANDS[session.settings.galaxy_type].get(layers)


def check_band(speeds: Sequence[float], band: tuple[float, float]) -> None:
    """Fail if too many iterations are too slow, or so fast that the band is out of date."""
    low, high = band
    counted = [speeds[i - 1] for i in TSU_ITERATIONS if i <= len(speeds)]
    for outside, advice in (
        (sum(speed < low for speed in counted), "too slow"),
        (sum(speed > high for speed in counted), "too fast: raise the band if this is real"),
    ):
        if outside > TSU_MAX_OUTSIDE * len(counted):
            pytest.fail(
                f"{outside} of {len(counted)} iterations are outside {low} to {high} tok/s/user: "
                f"{advice}",
                pytrace=False,
            )
