"""Whoever is beside them, users with and without images get what they get alone, to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from backends.op_record import record_ops
from models import vision_tables
from models.kv_cache import NULL_PAGE
from models.layers.decoder import DecoderLayer
from runtime.generator import Generator
from runtime.image_engine import ImageEngine
from runtime.image_generator import ImageGenerator
from runtime.images import Image, ImageRequest
from runtime.requests import Request
from tests.model.helpers import answers, engine_of, pcc, random_pages, random_prompt, run_forced
from tests.model.vision_helpers import CHECKPOINT, CONFIG, IMAGE, VISION, image, noted, prompt_with

TEXT = random_prompt(CONFIG.vocab_size, 40, seed=9)


def asking(seen: Image, seed: int = 0, count: int = 6) -> ImageRequest:
    """A question about an image."""
    return ImageRequest(prompt_with(45, 9, seed=seed), count, images=(seen,), image_token=IMAGE)


def logits_of(requests: list[Request], **options: Any) -> list[torch.Tensor]:
    """All logits of every request, answered together."""
    seen: dict[int, list[torch.Tensor]] = {}

    def note(handles: list[int], logits: torch.Tensor) -> None:
        for handle, row in zip(handles, logits, strict=True):
            seen.setdefault(handle, []).append(row.clone())

    with engine_of(CHECKPOINT, images=2, batch=4, **options) as engine:
        answers(ImageGenerator([engine], on_logits=note), requests)
    return [torch.stack(seen[handle]) for handle in sorted(seen)]


def test_users_with_one_tile_two_tiles_and_no_image_get_what_they_get_alone() -> None:
    requests = [asking(image("1x1")), Request(TEXT, 6), asking(image("2x1"), seed=4)]
    together = logits_of(requests)
    for request, found in zip(requests, together, strict=True):
        assert torch.equal(logits_of([request])[0], found)
    with engine_of(CHECKPOINT, batch=4) as engine:  # a model without eyes
        tokens = answers(Generator([engine]), [requests[1]])[0]
    assert together[1].argmax(-1).tolist() == tokens


def test_an_image_changes_what_its_user_is_told_and_nobody_else() -> None:
    first = logits_of([asking(image("1x2", 1)), Request(TEXT, 3)])
    other = logits_of([asking(image("1x2", 2)), Request(TEXT, 3)])
    assert torch.equal(first[1], other[1])
    assert (first[0] - other[0]).abs().max() > 0.05


def test_rows_before_the_image_are_those_of_a_text_alone() -> None:
    place, prompt = 60, prompt_with(100, 60)
    found = []
    with engine_of(CHECKPOINT, images=1, trace=False) as engine:
        for seen in (True, False):
            if seen:
                engine.attach(0, prompt, [image()])
            with noted(DecoderLayer, "prefill") as layers:
                engine.prefill([prompt], slots=[0], page_table=random_pages(engine))
            found.append(layers)
            engine.detach(0)
    for name in found[0]:
        assert torch.equal(found[0][name][:place], found[1][name][:place])
    last = f"layers.{CONFIG.num_layers - 1}"
    assert not torch.equal(found[0][last][place:100], found[1][last][place:100])


def test_where_the_pages_lie_changes_nothing_and_a_wrong_one_much() -> None:
    prompt, forced = prompt_with(45, 9), random_prompt(CONFIG.vocab_size, 3, seed=3)

    def run(change: Callable[[Any], None]) -> torch.Tensor:
        with engine_of(CHECKPOINT, images=1, batch=2) as engine:
            engine.attach(1, TEXT[:1] + [IMAGE], [image("2x1")])  # takes the first pages
            engine.attach(0, prompt, [image()])
            pages = random_pages(engine)
            logits = [engine.prefill([prompt], slots=[0], page_table=pages)[0]]
            change(engine.looks[0])
            positions = torch.tensor([len(prompt), -1], dtype=torch.int32)
            for step, token in enumerate(forced):
                tokens = torch.tensor([token, 0], dtype=torch.int32)
                at = positions + torch.tensor([step, 0], dtype=torch.int32)
                logits.append(engine.decode(tokens, at, page_table=pages)[0])
            return torch.stack(logits)

    with engine_of(CHECKPOINT, images=1, batch=2) as engine:
        engine.attach(0, prompt, [image()])
        alone = run_forced(engine, prompt, forced, random_pages(engine))
    assert torch.equal(run(lambda look: None), alone)
    wrong = run(lambda look: look.pages.reverse())
    assert torch.equal(wrong[0], alone[0]) and not torch.equal(wrong[1:], alone[1:])


def test_rows_that_fill_device_tiles_are_seen_by_nobody_and_padding_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt, original = prompt_with(45, 9), vision_tables.patch_rows

    def logits(first: int, last: int) -> torch.Tensor:
        """With noise in these rows of every tile, behind the norm that clears them."""

        def noisy(pixels: torch.Tensor, v: Any) -> torch.Tensor:
            rows = original(pixels, v).reshape(v.max_tiles, v.tile_rows, -1).clone()
            rows[:, first:last] = torch.randn(rows[:, first:last].shape)
            return rows.reshape(1, 1, v.max_tiles * v.tile_rows, -1)

        monkeypatch.setattr("runtime.image_engine.patch_rows", noisy)
        everyone = torch.ones(1, 1, VISION.max_tiles * VISION.tile_rows, 1)
        monkeypatch.setattr(vision_tables, "token_rows", lambda v: everyone)
        with engine_of(CHECKPOINT, images=1) as engine:
            engine.attach(0, prompt, [image()])
            return engine.prefill([prompt], slots=[0], page_table=random_pages(engine))[0]

    plain = logits(0, 0)
    assert torch.equal(logits(VISION.seen_rows, VISION.tile_rows), plain)
    assert not torch.equal(logits(VISION.tokens, VISION.seen_rows), plain)


def test_a_wrong_layout_of_tiles_gives_another_answer() -> None:
    right = image("1x2")
    wrong = dataclasses.replace(right, layout=VISION.ratio_id(2, 1))
    found = [logits_of([asking(seen, count=1)])[0] for seen in (right, wrong)]
    assert pcc(*found) < 0.999


def test_meshes_agree() -> None:
    prompt, found = prompt_with(45, 9), []
    for device in ("N150", "N300", "T3K"):
        with engine_of(CHECKPOINT, device, images=1) as engine:
            engine.attach(0, prompt, [image()])
            forced = random_prompt(CONFIG.vocab_size, 3, seed=3)
            found.append(run_forced(engine, prompt, forced, random_pages(engine)))
    for other in found[1:]:
        assert min(pcc(a, b) for a, b in zip(found[0], other, strict=True)) >= 0.9995


def test_a_second_turn_about_the_same_image_shares_its_first_and_no_other_images() -> None:
    first = asking(image("1x2", 1), count=20)
    with engine_of(CHECKPOINT, images=1, batch=2) as engine:
        generator = ImageGenerator([engine], share_prefixes=True)
        said = answers(generator, [first])[0]
        turn = [*first.prompt, *said, *TEXT]
        second = dataclasses.replace(first, prompt=turn, max_new_tokens=5)
        other = dataclasses.replace(second, images=(image("1x2", 2),))
        shared: list[int] = []
        looks: list[int] = []  # passes of the tower so far
        original = ImageEngine.prefilling

        def noting(engine: Any, *arguments: Any, **named: Any) -> Any:
            shared.append(named["start_positions"][0])
            return original(engine, *arguments, **named)

        ImageEngine.prefilling = noting  # type: ignore[method-assign]
        try:
            with record_ops() as ops:
                found = []
                for request in (second, other):
                    found.append(answers(generator, [request])[0])
                    looks.append(sum(op.scope == "vision.tiles" for op in ops))
        finally:
            ImageEngine.prefilling = original  # type: ignore[method-assign]
    assert shared == [64, 0]
    assert looks[0] == 0 < looks[1]
    for request, tokens in zip((second, other), found, strict=True):
        with engine_of(CHECKPOINT, images=1, batch=2) as engine:
            assert answers(ImageGenerator([engine]), [request])[0] == tokens


def test_states_of_an_image_give_way_to_those_of_newer_ones() -> None:
    """Two users keep two images: the one that was asked about longest ago is looked at again."""
    first, second, third = (asking(image("1x2", seed), count=2) for seed in (1, 2, 3))
    with engine_of(CHECKPOINT, images=1, batch=2) as engine:
        generator = ImageGenerator([engine], share_prefixes=True)
        found, looks = [], []
        for request in (first, second, first, third, first, second):
            with record_ops() as ops:
                found.append(answers(generator, [request])[0])
            looks.append(any(op.scope == "vision.tiles" for op in ops))
    assert looks == [True, True, False, True, False, True]
    assert found[0] == found[2] == found[4] and found[1] == found[5]


def test_a_prompt_with_one_image_twice_is_answered_as_if_they_were_two() -> None:
    prompt, seen = prompt_with(45, 9, 20), image("1x2")
    request = ImageRequest(prompt, 4, images=(seen, seen), image_token=IMAGE)
    found = []
    for shares in (False, True):
        with engine_of(CHECKPOINT, images=2, batch=2) as engine:
            found.append(answers(ImageGenerator([engine], share_prefixes=shares), [request])[0])
    assert found[0] == found[1]


def test_more_users_than_slots_and_pages_all_get_their_answers() -> None:
    requests = [
        asking(image(layout, seed), seed=seed) for seed, layout in enumerate(["1x1", "2x1"] * 3)
    ]
    with engine_of(CHECKPOINT, images=1, batch=2) as engine:
        generator = ImageGenerator([engine], sample_on_device=True)
        found = answers(generator, requests)
        assert engine.pool.num_free == engine.pool.num_blocks and not engine.looks
        generator.reset()
        for request, tokens in zip(requests, found, strict=True):
            assert answers(generator, [request])[0] == tokens


def test_nobody_is_given_the_page_of_zeros_that_users_without_images_read() -> None:
    with engine_of(CHECKPOINT, images=1, batch=2) as engine:
        for slot in range(2):
            engine.attach(slot, prompt_with(45, 9), [image("2x1")])
        given = [page for look in engine.looks.values() for page in look.pages]
        assert sorted(given) == list(range(NULL_PAGE + 1, engine.eyes.image_pages.num_blocks))


def test_a_batch_without_images_runs_the_text_stack_alone() -> None:
    with engine_of(CHECKPOINT, images=1, batch=2, trace=False) as engine, record_ops() as seeing:
        answers(ImageGenerator([engine]), [Request(TEXT, 2)])
    with engine_of(CHECKPOINT, batch=2, trace=False) as engine, record_ops() as blind:
        answers(Generator([engine]), [Request(TEXT, 2)])

    def calls(records: list[Any]) -> list[Any]:
        return [(r.name, r.scope, r.inputs, r.outputs) for r in records if r.scope]

    assert calls(seeing) == calls(blind)
