"""Prefill from traces: replays see new prompts, pages and lengths, beside decode and each other."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backends.emulator.loops import native
from backends.op_record import record_ops
from demo import flow
from perf.profiler import Profiler
from runtime.generator import Generator
from runtime.requests import Request
from runtime.traces import Trace
from serving import engines
from tests.model.helpers import engine_of, random_pages, random_prompt
from tests.tiny_models import TinyCheckpoint, tiny_config

CHECKPOINT = TinyCheckpoint(tiny_config("llama"))
VOCAB = CHECKPOINT.config.vocab_size
# users together and alone, in two buckets, each shape again with other prompts
CALLS = [(3, 100), (1, 70), (3, 90), (1, 200), (1, 128), (3, 128), (1, 130)]


def answers(device: str, *, traced: bool) -> list[torch.Tensor]:
    """Logits of every call, and of a decode step after each."""
    found = []
    with engine_of(CHECKPOINT, device, batch=3, trace=traced) as engine:
        pages = random_pages(engine)
        for seed, (users, length) in enumerate(CALLS):
            prompts = [random_prompt(VOCAB, length - u, seed=10 * seed + u) for u in range(users)]
            slots = torch.randperm(3, generator=torch.Generator().manual_seed(seed)).tolist()
            found.append(engine.prefill(prompts, slots=slots[:users], page_table=pages))
            positions = torch.full((3,), -1, dtype=torch.int32)
            for slot, prompt in zip(slots, prompts, strict=False):
                positions[slot] = len(prompt)
            tokens = torch.full((3,), seed, dtype=torch.int32)
            logits = engine.decode(tokens, positions, page_table=pages)
            found.append(logits[positions >= 0])
        assert all(t.captured for t in engine.short_prefills.traces()) or not traced
    return found


@pytest.mark.parametrize("device", ["N150", "T3K", "TG"])
def test_replayed_prefills_equal_those_sent_op_by_op(device: str) -> None:
    for got, wanted in zip(
        answers(device, traced=True), answers(device, traced=False), strict=True
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("optimizations", ["performance", "accuracy"])
def test_inputs_gathered_beside_products_give_what_they_give_before(optimizations: str) -> None:
    """Two short prompts, the second a replay, and one of two rows of tiles a core: not gathered."""
    fused, found = "experimental.all_gather_matmul_async", []
    for gathers in (False, True):
        with engine_of(
            CHECKPOINT, "T3K", optimizations=optimizations, ring=True, gathers=gathers
        ) as engine:
            pages, layers = random_pages(engine), len(engine.model.layers)
            for length, count in ((100, 2), (90, 2), (500, 0)):
                with record_ops() as records:
                    prompt = random_prompt(VOCAB, length)
                    found.append(engine.prefill([prompt], slots=[0], page_table=pages))
                names = [record.name for record in records]
                assert names.count(fused) == gathers * count * layers
                assert not engine.model.ccl.beside.rooms
    half = len(found) // 2
    for got, wanted in zip(found[half:], found[:half], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("optimizations", ["performance", "accuracy"])
def test_a_prompt_has_the_same_logits_alone_and_among_others(optimizations: str) -> None:
    """Else an answer depends on who else asks just then."""
    prompts = [random_prompt(VOCAB, length, seed=length) for length in (20, 100, 128)] * 4
    with engine_of(CHECKPOINT, "N150", batch=12, optimizations=optimizations) as engine:
        pages = random_pages(engine)
        alone = [
            engine.prefill([prompt], slots=[slot], page_table=pages)[0]
            for slot, prompt in enumerate(prompts)
        ]
        together = engine.prefill(prompts, slots=list(range(12)), page_table=pages)
    assert torch.equal(torch.stack(alone), together)


@pytest.mark.skipif(
    native.library() is None or not native.library().sums_pairs(),
    reason="no C compiler here, or a processor whose attention torch computes",
)
@pytest.mark.parametrize(
    ("device", "gathers"), [("N150", False), ("T3K", False), ("T3K", True), ("TG", False)]
)
def test_replayed_prefills_leave_nothing_to_python(device: str, gathers: bool) -> None:
    lists = []
    with engine_of(CHECKPOINT, device, batch=3, ring=gathers, gathers=gathers) as engine:
        pages = random_pages(engine)
        for seed in range(6):
            engine.prefill(
                [random_prompt(VOCAB, 100, seed=seed)], slots=[seed % 3], page_table=pages
            )
            (program,) = engine.model.mesh.traces.values()
            lists.append(program._replay)
    assert lists[-3] is lists[-2] is lists[-1]
    assert not lists[-1]._reads


@pytest.mark.skipif(native.library() is None, reason="no C compiler here")
@pytest.mark.parametrize("device", ["N150", "T3K", "TG"])
def test_prompts_of_many_users_give_in_a_list_what_they_give_op_by_op(device: str) -> None:
    found: dict[bool, list[torch.Tensor]] = {}
    for traced in (True, False):
        with engine_of(CHECKPOINT, device, batch=8, trace=traced) as engine:
            pages, found[traced] = random_pages(engine), []
            for seed in range(5):
                prompts = [random_prompt(VOCAB, 120, seed=8 * seed + user) for user in range(8)]
                logits = engine.prefill(prompts, slots=list(range(8)), page_table=pages)
                at = torch.full((8,), 120, dtype=torch.int32)
                tokens = logits.argmax(-1).to(torch.int32)
                found[traced] += [logits, engine.decode(tokens, at, page_table=pages)]
            assert not traced or all(
                program._replay is not None for program in engine.model.mesh.traces.values()
            )
    for got, wanted in zip(found[True], found[False], strict=True):
        assert torch.equal(got, wanted)


def test_a_replay_is_recorded_like_the_pass_it_repeats() -> None:
    with engine_of(CHECKPOINT, "N150") as engine:
        pages = random_pages(engine)

        def ops(seed: int) -> list[str]:
            prompt = random_prompt(VOCAB, 60, seed=seed)
            with record_ops() as records:
                engine.prefill([prompt], slots=[0], page_table=pages)
            return [record.name for record in records]

        first = ops(1)
        assert first and ops(2) == first


def test_shapes_that_come_by_turns_leave_the_recordings_of_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.short_prefill.MOST_SHAPES", 2)
    monkeypatch.setattr("runtime.short_prefill.PATIENCE", 4)
    with engine_of(CHECKPOINT, "N150") as engine:
        pages = random_pages(engine)
        prompts = [random_prompt(VOCAB, length) for length in (100, 200, 300)]

        def answers(prompts: list[list[int]]) -> torch.Tensor:
            found = [engine.prefill([p], slots=[0], page_table=pages) for p in prompts]
            return torch.cat(found)

        first, again = answers(prompts), answers(prompts)
        kept = [trace.id for trace in engine.held_traces()]
        assert None not in kept
        assert torch.equal(again, first) and torch.equal(answers(prompts), first)
        assert [trace.id for trace in engine.held_traces()] == kept
        # nobody asks for the first one any more
        assert torch.equal(answers(prompts[1:] * 3), first[1:].repeat(3, 1))
        assert set(engine.short_prefills.shapes) == {(1, 256), (1, 384)}


def test_a_recording_that_fails_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of(CHECKPOINT, "N150") as engine:
        pages, mesh, head = random_pages(engine), engine.model.mesh, engine.model.lm_head

        def answer() -> torch.Tensor:
            return engine.prefill([random_prompt(VOCAB, 60)], slots=[0], page_table=pages)

        def head_out_of_room(*given: object, **more: object) -> object:
            if mesh.capturing is not None:
                raise RuntimeError("out of room")
            return head(*given, **more)

        wanted = answer()
        engine.close()
        with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of room"):
            patched.setattr(engine.model, "lm_head", head_out_of_room)
            answer()
        assert mesh.capturing is None
        assert not mesh.traces
        assert all(torch.equal(answer(), wanted) for _ in range(2))
        assert len(mesh.traces) == 1


def warm_up_of_a_demo(engine: Any) -> None:
    session: Any = SimpleNamespace(generator=Generator([engine]))
    flow.warm_up(session, [Request(random_prompt(VOCAB, 60), max_new_tokens=9)], Profiler())


@pytest.mark.parametrize("warm_up", [engines.warm_up, warm_up_of_a_demo])
def test_a_warm_up_goes_on_until_every_pass_is_a_replay(
    warm_up: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that are compiled later make traces stale; the emulator compiles none by itself."""
    captures: list[object] = []
    with engine_of(CHECKPOINT, "N150") as engine, record_ops() as records:

        def programs(_: object) -> int:
            return len({(r.name, *(tuple(x.shape) for x in r.inputs)) for r in records})

        def step() -> list[torch.Tensor]:
            pages = random_pages(engine)
            logits = engine.prefill([random_prompt(VOCAB, 60)], slots=[0], page_table=pages)
            position = torch.tensor([60], dtype=torch.int32)
            token = logits.argmax(-1).to(torch.int32)
            return [logits, engine.decode(token, position, page_table=pages)]

        before = step()
        engine.close()
        engine.short_prefills.shapes.clear()
        records.clear()
        monkeypatch.setattr(type(engine.model.mesh), "num_program_cache_entries", programs)
        warm_up(engine)
        assert not any(trace.is_stale for trace in engine.held_traces())
        capture = Trace.capture
        monkeypatch.setattr(
            Trace, "capture", lambda *given: (captures.append(given), capture(*given))
        )
        after = step()
    assert not captures
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
