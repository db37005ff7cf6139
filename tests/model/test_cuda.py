"""The emulator on a GPU: whole programs, on one that this machine only pretends to have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import backends
from backends.emulator import launch
from runtime.sampling import GREEDY, device_sampling
from tests.fake_cuda import calls, fake_cuda
from tests.model.helpers import engine_of, random_pages, random_prompt
from tests.tiny_models import TinyCheckpoint, tiny_config, write_tiny

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = TinyCheckpoint(tiny_config("llama"))
VOCAB = CHECKPOINT.config.vocab_size
STEPS = 6


def answers(device: str) -> tuple[torch.Tensor, list[int], Counter[str]]:
    """Logits of prompts, the tokens after the last one, and what the last step read back."""
    logits, tokens = [], []
    with engine_of(CHECKPOINT, device, batch=2) as engine:
        pages = random_pages(engine)
        for seed in range(4):
            prompt = random_prompt(VOCAB, 60, seed=seed)
            logits.append(engine.prefill([prompt], slots=[0], page_table=pages))
        token = torch.tensor([3, 0], dtype=torch.int32)
        for step in range(STEPS):
            calls.clear()
            token = engine.decode(
                token, torch.tensor([60 + step, -1], dtype=torch.int32), page_table=pages,
                sampling=device_sampling([GREEDY] * 2),
            )  # fmt: skip
            tokens.append(int(token[0]))
    return torch.cat(logits), tokens, Counter(calls)


@pytest.mark.parametrize("device", ["N150", "TG"])
def test_prompts_and_replayed_steps_stay_on_the_gpu(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, tokens, none = answers(device)
    run = launch._run

    def watched(compute: Any, inputs: Any, outputs: Any, exact: Any) -> None:
        run(compute, inputs, outputs, exact)
        elsewhere = [t for t in outputs if t._device is not None and not t.data.is_cuda]
        assert not elsewhere, elsewhere

    monkeypatch.setattr(launch, "_run", watched)
    with fake_cuda():
        backends.ttnn.configure(torch_device="cuda")
        try:
            found, same, step = answers(device)
        finally:
            backends.ttnn.configure(torch_device="cpu")
    torch.testing.assert_close(found, expected, rtol=2**-5, atol=2**-4)
    assert same == tokens and not none
    assert step.pop("cuda") > 500
    assert sum(step.values()) <= 12, step  # in a step; none of them for each of its three layers


def run_demo(model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "demo/simple_text_demo.py", "-p", "no:cacheprovider",
         "-k", "performance and batch-1", "--max_generated_tokens", "6", *options],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HF_MODEL": str(model), "MESH_DEVICE": "N300",
             "TT_BACKEND": "emulator", "TT_EMULATOR_DEVICE": "cuda", "HOME": str(model.parent),
             "TT_CACHE_PATH": str(model.parent / "cache"), **kept},
    )  # fmt: skip


def test_the_demo_runs_on_cuda_from_cold_and_from_cached_weights(tmp_path: Path) -> None:
    model = write_tiny("llama", tmp_path / "tiny")
    outputs = []
    for _ in range(2):
        result = run_demo(model, "-p", "tests.fake_cuda")
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
        outputs.append(result.stdout.partition("==USER 0 - OUTPUT")[2].partition("===")[0])
    assert outputs[0].strip() and outputs[0] == outputs[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_demo_says_so_in_one_line(tmp_path: Path) -> None:
    result = run_demo(write_tiny("llama", tmp_path / "tiny"))
    assert result.returncode != 0
    assert "torch finds no CUDA device: use cpu or meta for the emulator" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
