"""The interface of Tenstorrent's plugin, called as that calls it, against our own generator."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import backends
from runtime.requests import Request
from tests.model.helpers import answers_as_in_demos
from tests.tiny_models import tiny_config, write_tiny

USERS, LENGTH, BLOCK, PAGES = 4, 256, 32, 64
PROMPTS = [[5, 9, 200, 17] * 11, [7, 3] * 40, [250, 11, 42]]
COUNT = 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    return write_tiny("llama", tmp_path_factory.mktemp("tiny"))


def answers_of_the_interface(model: Any, cache: Any) -> list[list[int]]:
    """The same, with vLLM's habits: numpy lengths, rows padded with junk, tables with page 0."""
    longest = max(map(len, PROMPTS))
    tokens = torch.full((len(PROMPTS), longest), 77)
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    pages = torch.randperm(PAGES - 1)[: USERS * 4].reshape(USERS, 4) + 1
    tables = torch.zeros(USERS, LENGTH // BLOCK, dtype=torch.int32)
    slots = [2, 0, 3]
    for prompt, slot in zip(PROMPTS, slots, strict=True):
        count = -(-(len(prompt) + COUNT) // BLOCK)
        tables[slot, :count] = pages[slot, :count]
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    logits = model.prefill_forward(
        tokens=tokens, page_table=tables[slots], kv_cache=cache, enable_trace=False,
        prompt_lens=lengths, start_pos=np.zeros(len(PROMPTS), dtype=int), empty_slots=slots,
    )  # fmt: skip
    assert logits.shape[:2] == (len(PROMPTS), 1)
    found = [[int(row.argmax())] for row in logits]
    for step in range(COUNT - 1):
        ids, positions = torch.zeros(USERS, 1, dtype=torch.int32), torch.full((USERS,), -1)
        for answer, prompt, slot in zip(found, PROMPTS, slots, strict=True):
            ids[slot, 0], positions[slot] = answer[-1], len(prompt) + step
        out = model.decode_forward(
            tokens=ids, page_table=tables, kv_cache=cache, start_pos=positions,
            enable_trace=True, read_from_device=False, reset_batch=step == 0,
        )  # fmt: skip
        out, events = model.read_decode_output(out, async_read=True)
        assert events == []
        out = model.process_decode_output_host(out, is_tokens=False)
        for answer, slot in zip(found, slots, strict=True):
            answer.append(int(out[slot, -1].argmax()))
    return found


@pytest.mark.parametrize(("device", "groups"), [("N150", 1), ("N300", 1), ("N300", 2)])
def test_calls_of_their_plugin_give_the_generators_tokens(
    directory: Path, device: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.select("emulator")
    from backends.mesh import open_mesh
    from serving.tenstorrent import TTModel

    monkeypatch.setenv("TT_BACKEND", "emulator")
    for name in ("MESH_DEVICE", "FAKE_DEVICE", "HF_MODEL", "LLAMA_DIR"):
        monkeypatch.delenv(name, raising=False)
    with open_mesh(device) as mesh:
        model = TTModel.initialize_vllm_model(
            SimpleNamespace(_name_or_path=str(directory)), mesh, USERS,
            max_seq_len=LENGTH, tt_data_parallel=groups, optimizations=None, vllm_config=None,
        )  # fmt: skip
        layers = tiny_config("llama").num_layers
        cache = model.allocate_kv_cache((PAGES, 1, BLOCK, 64), torch.bfloat16, layers)
        assert len(cache) == groups and len(cache[0]) == layers
        model.warmup_model_prefill(kv_cache=cache, enable_trace=False, can_sample_on_device=False)
        model.warmup_model_decode(kv_cache=cache, enable_trace=True, max_batch_size=USERS)
        found = answers_of_the_interface(model, cache)
    single = "N150" if groups == 2 else device
    assert found == answers_as_in_demos(
        [Request(prompt, COUNT) for prompt in PROMPTS],
        model=str(directory), device=single, max_batch_size=USERS, max_seq_len=LENGTH,
        num_blocks=PAGES,
    )  # fmt: skip


def test_what_fits_is_what_vllm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    backends.select("emulator")
    from serving.tenstorrent import TTModel

    monkeypatch.setenv("MESH_DEVICE", "N150")
    told = TTModel.get_max_tokens_all_users(
        model_name="default", num_devices=1, tt_data_parallel=1, max_model_len=2048,
        max_num_seqs=32,
    )  # fmt: skip
    assert told == 32 * 2048


def test_grids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.tenstorrent import TTModel

    monkeypatch.setenv("MESH_DEVICE", "TG")
    with pytest.raises(ValueError, match="grid of chips"):
        TTModel.initialize_vllm_model(SimpleNamespace(_name_or_path="x"), None, 32)
