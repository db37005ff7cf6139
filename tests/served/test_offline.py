"""The offline program on a tiny model: both of vLLM's engines, and TT-NN's own wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm")

from tests.served.server import OUTER, ROOT
from tests.tiny_models import write_tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    return write_tiny("llama", tmp_path_factory.mktemp("tiny"))


def offline(directory: Path, *arguments: str, **settings: str) -> str:
    """What the program printed."""
    kept = {k: v for k, v in os.environ.items() if k not in OUTER and not k.startswith("VLLM_")}
    command = [sys.executable, str(ROOT / "demo" / "offline_inference_tt.py")]
    command += ["--model", str(directory), "--max_tokens", "5", *arguments]
    result = subprocess.run(
        command, env={**kept, **settings}, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def test_the_streaming_engine_answers_as_the_batch_interface_does(directory: Path) -> None:
    def answers(*arguments: str) -> list[str]:
        said = offline(directory, "--greedy_sampling", "--max_seqs_in_batch", "8", *arguments)
        return [line for line in said.splitlines() if line.startswith("--- ")]

    once, streamed = answers(), answers("--async_engine", "--num_repeat_prompts", "2")
    count = len(once)
    texts = [line.split(":", 1)[1] for line in streamed]
    assert count == 32 and texts == [line.split(":", 1)[1] for line in once] * 2


@pytest.mark.skipif(find_spec("ttnn") is None, reason="the wheel of TT-NN is not installed")
def test_the_wheel_takes_every_call_of_a_served_model(directory: Path) -> None:
    said = offline(
        directory, "--measure_perf", "--perf_prompt_len", "40", "--max_seqs_in_batch", "2",
        "--max_model_len", "256", TT_BACKEND="dry-run", MESH_DEVICE="N300",
    )  # fmt: skip
    assert "serving on dry-run (ttnn) as N300" in said
    assert "2 requests, 10 tokens" in said and "this computer's clock, dry-run, N300" in said
