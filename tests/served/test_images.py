"""Images through vLLM's multimodal interface and over HTTP: what the demos' generator answers."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM makes an engine

import numpy as np
import openai
from PIL import Image as pillow
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from runtime.find import find_model
from tests.model.helpers import answers_as_in_demos
from tests.served.server import Server, start
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


def answers_of_the_generator(
    directory: Path, questions: list[tuple[list[int], list[Any]]]
) -> list[list[int]]:
    """Greedy tokens of each question."""
    from runtime.images import ImageRequest, load_image

    requests = [
        ImageRequest(
            prompt, COUNT, images=tuple(load_image(image, VISION) for image in images),
            image_token=VISION.image_token,
        )
        for prompt, images in questions
    ]  # fmt: skip
    return answers_as_in_demos(
        requests, model=str(directory), device="N300", max_batch_size=USERS, max_seq_len=CONTEXT,
        num_blocks=128, images=2,
    )  # fmt: skip


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
    expected = answers_of_the_generator(directory, QUESTIONS)
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


@pytest.fixture(scope="module")
def server(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same model behind HTTP."""
    running = start(
        tmp_path_factory.mktemp("server") / "log.txt", "--model", str(directory),
        users=USERS, context=CONTEXT, env={"TT_BACKEND": "emulator", "MESH_DEVICE": "N300"},
    )  # fmt: skip
    yield running
    running.kill()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def file_of(image: Any) -> bytes:
    """The image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def over_http(server: Server, directory: Path, text: str, *urls: str) -> Any:
    """One greedy answer, with the tokens of both sides."""
    content: Any = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": text})
    return server.client.chat.completions.create(
        model=str(directory), messages=[{"role": "user", "content": content}], temperature=0.0,
        max_tokens=COUNT, extra_body={"return_token_ids": True, "ignore_eos": True},
    )  # fmt: skip


def test_images_in_requests_over_http_are_answered_as_by_the_demos(
    server: Server, directory: Path
) -> None:
    text, tokenizer = "Describe this image.", find_model(str(directory)).tokenizer
    asked_with: list[list[Any]] = [[WIDE], [TALL], []]
    found = [
        over_http(server, directory, text, *(data_url(file_of(image)) for image in images))
        for images in asked_with
    ]
    prompts = [answer.prompt_token_ids for answer in found]
    assert [prompt.count(VISION.image_token) for prompt in prompts] == [1, 1, 0]
    expected = answers_of_the_generator(directory, list(zip(prompts, asked_with, strict=True)))
    said = [answer.choices[0].message.content for answer in found]
    assert [answer.choices[0].token_ids for answer in found] == expected
    assert said == [tokenizer.decode(tokens) for tokens in expected]
    assert len(set(said)) == 3


WHOLE = file_of(WIDE)
BAD_IMAGES = {
    "no image": (data_url(b"hello"), "cannot identify image"),
    "cut short": (data_url(WHOLE[: len(WHOLE) // 2]), "truncated"),
    "no base64": ("data:image/png;base64,%%%", "base64"),
    "a file of the server": ("file:///etc/hostname", "local files"),
    "no address": ("image", "URL"),
    "a bomb": (data_url(file_of(pillow.new("1", (20_000, 20_000)))), "64 million"),
    "too large": (data_url(file_of(pillow.new("1", (9_000, 9_000)))), "64 million"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_over_http_is_the_requests_fault_and_one_line(
    server: Server, directory: Path, kind: str
) -> None:
    url, said = BAD_IMAGES[kind]
    with pytest.raises(openai.BadRequestError) as error:
        over_http(server, directory, "What is it?", url)
    message = error.value.body["message"]  # type: ignore[index]
    assert said in message and "\n" not in message


def test_images_and_image_words_over_http_that_are_not_as_many_are_refused(
    server: Server, directory: Path
) -> None:
    with pytest.raises(openai.BadRequestError, match="1 <.image.> and 0 images"):
        over_http(server, directory, "See <|image|> here.")
    with pytest.raises(openai.BadRequestError, match="At most 1 image"):
        over_http(server, directory, "What are they?", *[data_url(WHOLE)] * 2)
    assert server.get("/health") == ""
