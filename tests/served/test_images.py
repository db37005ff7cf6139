"""Images through vLLM's multimodal interface: what the demos' generator answers, to the token."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM makes an engine

import numpy as np
from PIL import Image as pillow
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

import backends
from runtime.settings import Settings
from tests.tiny_models import tiny_config, write_tiny

CONFIG = tiny_config("mllama")
VISION: Any = CONFIG.vision
USERS, CONTEXT, COUNT = 4, 512, 6
GREEDY = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)


def picture(seed: int, size: tuple[int, int]) -> Any:
    """Something to look at, the same every time."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return pillow.fromarray(coarse).resize(size)


WIDE, TALL = picture(1, (130, 50)), picture(2, (50, 130))


def asked(length: int, *places: int) -> list[int]:
    """A prompt with images in these places."""
    tokens = [(7 * n + length) % 500 for n in range(length)]
    for place in places:
        tokens[place] = VISION.image_token
    return tokens


# one image, none, two, a prompt of several steps, the first again and on: its pages are not read
QUESTIONS: list[tuple[list[int], list[Any]]] = [
    (asked(45, 9), [WIDE]),
    (asked(40), []),
    (asked(50, 3, 20), [WIDE, TALL]),
    (asked(300, 70), [TALL]),
    (asked(45, 9) + asked(40), [WIDE]),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that takes images."""
    return write_tiny("mllama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[LLM]:
    """vLLM over the real engine on two emulated chips, in this process."""
    set_before = {name: os.environ.get(name) for name in ("TT_BACKEND", "MESH_DEVICE")}
    os.environ.update({"TT_BACKEND": "emulator", "MESH_DEVICE": "N300"})
    made = LLM(
        model=str(directory), max_model_len=CONTEXT, max_num_seqs=USERS,
        max_num_batched_tokens=192, limit_mm_per_prompt={"image": 2},
    )  # fmt: skip
    yield made
    made.llm_engine.engine_core.shutdown()
    for name, value in set_before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def answers_of_the_generator(directory: Path) -> list[list[int]]:
    """Greedy tokens of each question."""
    backends.select("emulator", "N300")
    from models.kv_cache import CacheConfig
    from runtime.blueprint import LoadOptions
    from runtime.image_generator import ImageGenerator
    from runtime.images import ImageRequest, load_image
    from runtime.loading import load_engines

    options = LoadOptions(
        model=str(directory), device="N300", max_batch_size=USERS, max_seq_len=CONTEXT,
        cache=CacheConfig(32, 128), images=2,
    )  # fmt: skip
    requests = [
        ImageRequest(
            prompt, COUNT, images=tuple(load_image(image, VISION) for image in images),
            image_token=VISION.image_token,
        )
        for prompt, images in QUESTIONS
    ]  # fmt: skip
    found: list[list[int]] = [[] for _ in requests]
    with load_engines(options, Settings(backend="emulator", device="N300")) as loaded:
        for step in ImageGenerator(loaded.engines).generate(requests):
            for user, token in step.tokens.items():
                found[user].append(token)
    return found


def ask(served: LLM, questions: list[tuple[list[int], list[Any]]]) -> list[list[int]]:
    """All at once."""
    prompts: list[Any] = [
        {"prompt_token_ids": tokens, **({"multi_modal_data": {"image": images}} if images else {})}
        for tokens, images in questions
    ]
    outputs = served.generate(prompts, GREEDY.clone(), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_prompts_with_and_without_images_are_answered_as_by_the_demos(
    served: LLM, directory: Path
) -> None:
    expected = answers_of_the_generator(directory)
    assert ask(served, QUESTIONS) == expected
    for question, answer in zip(QUESTIONS, expected, strict=True):
        assert ask(served, [question]) == [answer]  # alone, where vLLM knows its beginning


def test_another_image_gets_another_answer(served: LLM) -> None:
    tokens, (image,) = QUESTIONS[0]
    assert ask(served, [(tokens, [image])]) != ask(served, [(tokens, [TALL])])


def test_images_and_image_tokens_that_are_not_as_many_are_one_line(served: LLM) -> None:
    with pytest.raises(VLLMValidationError, match=r"has 1 <\|image\|> and 0 images: give one"):
        ask(served, [(asked(20, 3), [])])
    with pytest.raises(VLLMValidationError, match="At most 2 image"):
        ask(served, [(asked(20, 3, 4, 5), [WIDE] * 3)])
