"""The course of the decode-only demo: prompts go through decode token by token, then answers.

Every user owns a window of positions; a stress run starts the window's end over again and again,
so half a million tokens take no more memory than a few thousand.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
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
from demo.session import (
    Session,
    encode_prompts,
    find_model,
    find_prompts,
    fit_context,
    open_session,
)
from perf.metrics import measure
from perf.profiler import Profiler
from runtime.paging import BlockPool
from runtime.prompts import Prompt, for_users, load_prompts
from runtime.sampling import Sampler, SamplingParams, device_sampling
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


@dataclass(frozen=True)
class Window:
    """Positions a user may write: it starts at `start`, and from `wrap` on it may be reused."""

    start: int
    wrap: int
    end: int

    def position(self, step: int) -> int:
        """Position of the step-th token; those from `wrap` to `end` repeat for ever."""
        position = self.start + step
        if position < self.end:
            return position
        return self.wrap + (position - self.wrap) % (self.end - self.wrap)


def run_decode_demo(case: DecodeCase, given: dict[str, Any], settings: Settings) -> None:
    """Run a case, print texts and speeds, fail where speed leaves its band."""
    if case.data_parallel != 1:
        raise ValueError(f"demo_decode runs one model: data_parallel {case.data_parallel} is not 1")
    path = find_prompts(case.input_prompts)
    model = find_model(case, settings)
    case = fit_context(case, given, model.config, [])
    instruct = case.instruct and model.tokenizer.is_instruct and case.weights != "random"
    prompts = for_users(load_prompts(path, instruct=instruct), case.batch_size)
    if case.weights == "random":
        prompts = [Prompt("This is a test")] * case.batch_size  # random weights answer nothing
    ids = encode_prompts(case, model, prompts)
    window = window_of(case, max(map(len, ids)))
    with open_session(case, settings, model) as session:
        log = decode_all(session, case, ids, window)
    for user, (prompt, tokens) in enumerate(zip(prompts, log.tokens, strict=True)):
        dropped = log.num_generated[user] - len(tokens)
        note = f" (after {dropped} tokens not kept)" if dropped else ""
        text = model.tokenizer.decode(list(tokens)).strip()
        logger.info(
            f"==USER {user} - PROMPT\n{prompt.text}\n==USER {user} - OUTPUT{note}\n{text}\n"
        )
    report_speed(session, case, log)


def window_of(case: DecodeCase, longest: int) -> Window:
    """Positions every user gets; one clear line if a run that does not wrap needs more."""
    end = case.max_seq_len
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
    return Window(case.start_pos, case.start_pos + longest, end)


def page_table(case: DecodeCase, window: Window) -> torch.Tensor | None:
    """Every user's pages for its whole window, in random order."""
    if not case.paged_attention:
        return None
    pool = BlockPool(case.page_params.max_num_blocks, case.page_params.block_size, seed=0)
    for user in range(case.batch_size):
        pool.allocate(user, [0], limit=window.end)
        pool.grow(user, window.end)
    width = -(-case.max_seq_len // pool.block_size)
    rows = [pool.table(user, width) for user in range(case.batch_size)]
    return torch.tensor(rows, dtype=torch.int32)


def user_sampling(case: DecodeCase) -> list[SamplingParams]:
    """Sampling of each user."""
    chosen = case.sampling_params
    if isinstance(chosen, tuple):
        return [chosen[user % len(chosen)] for user in range(case.batch_size)]
    return [chosen.for_user(user) for user in range(case.batch_size)]


def decode_all(
    session: Session, case: DecodeCase, prompts: Sequence[Sequence[int]], window: Window
) -> DecodeLog:
    """Feed prompts, then each user's own tokens; all users are at the same position."""
    engine = session.loaded.engines[0]
    params, users = user_sampling(case), range(case.batch_size)
    on_device = device_sampling(params) if case.sample_on_device else None
    sampler = Sampler(case.batch_size, engine.vocab_size)
    for user in users:
        sampler.assign(user, params[user], prompts[user])
    table = page_table(case, window)
    log = DecodeLog(
        tokens=[deque(maxlen=KEPT_TOKENS) for _ in users], num_generated=[0 for _ in users]
    )
    stops = session.model.tokenizer.eos_ids if case.stop_at_eos else frozenset()
    inputs = [prompt[0] for prompt in prompts]
    active = set(users)
    longest = max(map(len, prompts))
    steps = range(longest + case.max_generated_tokens - 1)
    for step in tqdm(steps, desc="decode", leave=False, disable=None):
        position = window.position(step)
        positions = torch.tensor([position if user in active else -1 for user in users])
        begin = time.perf_counter()
        out = engine.decode(
            torch.tensor(inputs, dtype=torch.int32),
            positions.to(torch.int32),
            page_table=table,
            sampling=on_device,
        )
        if on_device is None:
            out = sampler.sample(out, list(users))
        note_time(log, step - longest + 1, time.perf_counter() - begin, len(active))
        for user in sorted(active):
            if step + 1 < len(prompts[user]):
                inputs[user] = prompts[user][step + 1]
                continue
            inputs[user] = token = int(out[user])
            log.tokens[user].append(token)
            log.num_generated[user] += 1
            if token in stops:
                active.discard(user)
        if not active:
            break
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
