"""Tiny models under vLLM on emulated meshes, by MESH_DEVICE and data_parallel alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM makes an engine

from vllm import EngineArgs, SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from runtime.requests import Request
from tests.model.helpers import answers_as_in_demos
from tests.tiny_models import write_tiny

USERS, LENGTH, COUNT = 8, 256, 6
PROMPTS = [[(7 * user + 3 * i) % 250 + 1 for i in range(20 + 9 * user)] for user in range(USERS)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    return write_tiny("llama", tmp_path_factory.mktemp("tiny"))


def answers_of_vllm(directory: Path, groups: int) -> tuple[list[list[int]], list[Any]]:
    """Greedy tokens of each prompt, and the shapes of the engines' meshes."""
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(directory), max_model_len=LENGTH, max_num_seqs=USERS,
            max_num_batched_tokens=USERS * LENGTH,
            additional_config={"tt": {"data_parallel": groups}},
        )
    )  # fmt: skip
    sampling = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
    for user, prompt in enumerate(PROMPTS):
        engine.add_request(str(user), {"prompt_token_ids": prompt}, sampling)
    found: list[Sequence[int]] = [[]] * USERS
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[int(output.request_id)] = output.outputs[0].token_ids
    core: Any = engine.engine_core
    engines = core.engine_core.model_executor.driver_worker.worker.loaded.engines
    shapes = [tuple(one.model.mesh.shape) for one in engines]
    core.shutdown()
    return [list(tokens) for tokens in found], shapes


@pytest.mark.parametrize(
    ("device", "groups", "shape"),
    [
        pytest.param("N300", 1, (1, 2), marks=pytest.mark.full),
        pytest.param("N300", 2, (1, 1), marks=pytest.mark.full),
        ("T3K", 1, (1, 8)),
        ("T3K", 4, (1, 2)),
        ("TG", 1, (8, 4)),
        pytest.param("TG", 4, (1, 8), marks=pytest.mark.full),
    ],
)
def test_meshes_serve_what_the_generator_says(
    directory: Path,
    device: str,
    groups: int,
    shape: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("FAKE_DEVICE", "HF_MODEL", "LLAMA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TT_BACKEND", "emulator")
    monkeypatch.setenv("MESH_DEVICE", device)
    found, shapes = answers_of_vllm(directory, groups)
    assert shapes == [shape] * groups
    assert found == answers_as_in_demos(
        [Request(prompt, COUNT) for prompt in PROMPTS],
        model=str(directory), device=device, data_parallel=groups, max_seq_len=LENGTH,
        max_batch_size=USERS // groups, num_blocks=USERS * LENGTH // 32,
    )  # fmt: skip
