"""The course of a text demo: prepare, warm up, prefill, decode, report. Shared by all text demos.

Finding and loading are session.py's, printing report.py's, figures perf/metrics.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loguru import logger

from demo import report
from demo.cases import Case
from demo.prefixes import fill_prefixes
from demo.progress import DecodeShow, TextStream
from demo.session import Session, cache_of, fit_context
from models.numbers import counted
from perf.profiler import Profiler
from runtime.find import (
    Model,
    check_pages,
    encode_prompts,
    find_model,
    find_prompts,
    make_requests,
)
from runtime.images import with_images
from runtime.prompts import Prompt, for_users, load_entries, load_prompts
from runtime.requests import Request, Step, StepKind
from runtime.settings import Settings

WARM_UP_TOKENS = 4096  # the emulator compiles nothing: longer prompts are not run twice there


@dataclass(frozen=True)
class Questions:
    """What is to be asked: every batch's prompts and requests, tokenised and checked."""

    case: Case
    model: Model
    prompts: list[list[Prompt]]  # [batch][user]
    requests: list[list[Request]]


@dataclass
class Answers:
    """What one batch of users was answered."""

    tokens: list[list[int]]
    log_probs: list[list[float]]

    @classmethod
    def of_users(cls, num_users: int) -> Answers:
        """No tokens yet."""
        return cls([[] for _ in range(num_users)], [[] for _ in range(num_users)])

    def add(self, step: Step) -> None:
        """Append a step's tokens."""
        for user, token in step.tokens.items():
            self.tokens[user].append(token)
        for user, log_prob in step.log_probs.items():
            self.log_probs[user].append(log_prob)


@dataclass
class OpLists:
    """TT-NN calls of one prefill of all users and of one decode iteration, for predictions."""

    prefill: list[Any] = field(default_factory=list)
    decode: list[Any] = field(default_factory=list)


def prepare(case: Case, given: dict[str, Any], settings: Settings) -> Questions:
    """Read and check everything that can be checked before weights are loaded."""
    path = find_prompts(case.input_prompts)
    model = find_model(settings.checkpoint, weights=case.weights, vision=case.images > 0)
    case = fit_context(case, given, model.config, load_entries(path))
    if case.instruct and not model.tokenizer.is_instruct and "instruct" not in given:
        logger.info(f"{model.config.name} has no chat template: prompts are continued as text")
        case = replace(case, instruct=False)
    room = case.max_seq_len - case.max_generated_tokens
    prompts = load_prompts(
        path, instruct=case.instruct, count_tokens=model.tokenizer.count, room=room
    )
    if case.images:  # a vision demo's model is loaded for as many as its prompts have
        case = replace(case, images=max(case.images, *(len(p.images) for p in prompts)))
    shifts = [batch if case.rotate_prompts else 0 for batch in range(case.repeat_batches)]
    batches = [for_users(prompts, case.users, shift=shift) for shift in shifts]
    requests = [requests_of(case, model, batch) for batch in batches]
    for batch in requests:
        check_pages(batch, cache_of(case), case.batch_size)
    return Questions(case, model, batches, requests)


def requests_of(case: Case, model: Model, prompts: Sequence[Prompt]) -> list[Request]:
    """One batch's requests, by the case's limits and sampling."""
    ids = encode_prompts(
        model,
        prompts,
        instruct=case.instruct,
        max_seq_len=case.max_seq_len,
        max_new_tokens=case.max_generated_tokens,
        wraps=case.stress_test,
    )
    requests = make_requests(
        ids,
        case.sampling,
        max_new_tokens=case.max_generated_tokens,
        wrap_at=case.max_seq_len if case.stress_test else None,
    )
    return with_images(requests, prompts, model.config, replaced=case.image)


def recorded(steps: Iterator[Step], ops: OpLists) -> Iterator[Step]:
    """The steps, with the TT-NN calls of prefill and of the first decode noted in `ops`."""
    from backends.op_record import record_ops

    while not ops.decode:
        with record_ops() as calls:
            step = next(steps, None)
        if step is None:
            return
        noted = ops.prefill if step.kind is StepKind.PREFILL else ops.decode
        noted += calls
        yield step
    yield from steps


def warm_up(session: Session, requests: Sequence[Request], profiler: Profiler) -> OpLists:
    """Prefill and decode unmeasured until all is recorded: they compile, and show the ops used."""
    generator, ops = session.generator, OpLists()
    generator.reset()
    short = [replace(each, max_new_tokens=min(2, each.max_new_tokens)) for each in requests]
    for _ in range(2):  # what the decode compiles makes the prefill's trace stale
        for step in recorded(generator.generate(short), ops):
            profiler.add(f"compile_{step.kind.value}", step.seconds)
        if not any(trace.is_stale for each in generator.engines for trace in each.held_traces()):
            break
    return ops


def needs_warm_up(session: Session, requests: Sequence[Request]) -> bool:
    """Hardware compiles; the emulator only settles which kernels are fastest."""
    tokens = sum(len(request.prompt) for request in requests)
    return session.settings.backend != "emulator" or tokens <= WARM_UP_TOKENS


def run_batch(
    session: Session,
    requests: Sequence[Request],
    profiler: Profiler,
    *,
    ops: OpLists | None = None,
    quiet: bool = False,
    streamed: bool = False,
) -> Answers:
    """Answer all requests, timing prefill and every decode iteration; `ops` is filled if empty.

    `streamed` prints a single user's text as it comes.
    """
    case, generator = session.case, session.generator
    generator.reset()
    if not quiet:
        short = session.loaded.engines[0].short_context
        report.print_long_factors(session.model.config.name, short, requests)
    if case.prefix_cached_ratio:
        fill_prefixes(session, requests)
    answers = Answers.of_users(len(requests))
    if case.mode == "prefill":
        requests = [replace(request, max_new_tokens=1) for request in requests]
    longest = max(len(request.prompt) for request in requests)
    logger.info(f"Prefill of {counted(len(requests), 'user')}, up to {longest} tokens each")
    num_iterations = max(request.max_new_tokens for request in requests) - 1
    tokenizer = session.model.tokenizer
    stream = TextStream(tokenizer) if streamed else None
    with DecodeShow(num_iterations, stream, log=not quiet, printed=case.print_iterations) as show:
        steps = generator.generate(requests)
        for step in steps if ops is None or ops.decode else recorded(steps, ops):
            answers.add(step)
            show.tokens(step)
            if step.kind is StepKind.PREFILL:
                if case.mode != "decode":
                    profiler.add("inference_prefill", step.seconds)
                continue
            show.iteration(len(profiler.times("inference_decode")), step)
            profiler.add("inference_decode", step.seconds)
            if case.print_outputs:
                report.print_tokens(step, tokenizer)
    return answers


def run_batches(
    questions: Questions, session: Session, profiler: Profiler
) -> tuple[list[Answers], OpLists]:
    """Run every batch; only the first is measured."""
    ops = OpLists()
    if needs_warm_up(session, questions.requests[0]):
        ops = warm_up(session, questions.requests[0], profiler)
    run_first = run_checked if questions.case.pcc_check else run_batch
    all_answers = []
    for number, (prompts, requests) in enumerate(
        zip(questions.prompts, questions.requests, strict=True)
    ):
        streamed = len(requests) == 1
        if streamed:
            report.print_prompt(number, 0, prompts[0])
        if number == 0:
            answers = run_first(session, requests, profiler, ops=ops, streamed=streamed)
        else:
            answers = run_batch(session, requests, Profiler(), quiet=True, streamed=streamed)
        if not streamed:
            report.print_answers(number, prompts, answers.tokens, session.model.tokenizer)
        all_answers.append(answers)
    return all_answers, ops


def run_checked(
    session: Session,
    requests: Sequence[Request],
    profiler: Profiler,
    *,
    ops: OpLists,
    streamed: bool,
) -> Answers:
    """run_batch with its numbers compared with Hugging Face's, and with a second run's."""
    from demo import pcc_check

    with pcc_check.tapped(session, requests) as tap:
        answers = run_batch(session, requests, profiler, ops=ops, streamed=streamed)
    found = pcc_check.compare(session, tap, requests, answers.tokens)
    pcc_check.report_agreement(found, strict=session.case.weights != "random")
    if getattr(session.case, "apc_test", False):
        with pcc_check.tapped(session, requests) as again:
            run_batch(session, requests, Profiler(), quiet=True)
        pcc_check.require_same(tap, again)
    return answers
