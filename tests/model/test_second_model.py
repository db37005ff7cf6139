"""One model after another in a process: the second answers as if it were the first and only one."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.helpers import answers_as_in_demos
from tests.tiny_models import write_tiny

ROOT = Path(__file__).resolve().parents[2]
PROMPT_TOKENS = (3, 40, 127, 129, 200)
STEPS = 40  # a page ends among them, and traces are replayed in C
AT_ONCE_BYTES = 1 << 19  # of each of 21 to 272 MB
KEPT_BYTES = 1 << 16  # what calls remember of the last ones


def _answers(model: Path, device: str) -> list[list[int]]:
    """Tokens of a demo with a full batch, several prompts of which are replayed from traces."""
    from runtime.requests import Request

    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocab, (n,), generator=draw).tolist() for n in PROMPT_TOKENS * 2]
    requests = [Request(prompt, STEPS) for prompt in prompts]
    return answers_as_in_demos(
        requests, num_blocks=256, model=str(model), device=device, max_batch_size=4
    )


def _left(folder: Path) -> dict[str, Any]:
    """What is alive of models, their files open or mapped, and bytes of all tensors' memory."""
    from backends.emulator.chip.device import MeshDevice
    from backends.emulator.chip.tensor import Tensor
    from backends.emulator.numerics import kernels
    from backends.emulator.trace import Program
    from models.transformer import Transformer
    from runtime.engine import Engine

    kinds = (MeshDevice, Tensor, Program, Transformer, Engine, kernels.Weight)
    everything = gc.get_objects()
    storages = [each.untyped_storage() for each in everything if type(each) is torch.Tensor]
    fds = (fd for fd in Path("/proc/self/fd").iterdir() if fd.exists())
    files = [*map(os.readlink, fds), *Path("/proc/self/maps").read_text().splitlines()]
    return {
        "objects": sorted({type(each).__name__ for each in everything if type(each) in kinds}),
        "files": [line for line in files if str(folder) in line],
        "tensor_bytes": sum({each.data_ptr(): each.nbytes() for each in storages}.values()),
        "room_for_forms": kernels._budget["left"],
    }


def _program(folder: Path, device: str, *names: str) -> None:
    """Run models one after the other; prints the last one's tokens and what each left behind."""
    import backends

    backends.select("emulator")
    from backends.emulator.numerics import kernels

    found: list[list[int]] = []
    left = [_left(folder)]
    with kernels.fixed():  # as they are measured, two runs may round differently
        for name in names:
            found = _answers(folder / name, device)
            left.append(_left(folder))
    gc.collect()
    print(json.dumps({"tokens": found, "left": [*left, _left(folder)]}))


def _run(folder: Path, device: str, *names: str) -> dict[str, Any]:
    """What `_program` prints in a process of its own."""
    code = (
        "from pathlib import Path; from tests.model.test_second_model import _program; "
        f"_program(Path({str(folder)!r}), {device!r}, *{names!r})"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two models of other families, widths and vocabularies."""
    made = tmp_path_factory.mktemp("models")
    for family in ("llama", "qwen3"):
        write_tiny(family, made / family)
    return made


@pytest.mark.parametrize("device", ["N150", "T3K", "TG"])
def test_a_second_model_answers_as_if_alone_and_finds_nothing_of_the_first(
    folder: Path, device: str
) -> None:
    alone, after = (_run(folder, device, *names) for names in (["qwen3"], ["llama", "qwen3"]))
    assert after["tokens"] == alone["tokens"]
    before, *left, collected = after["left"]
    for count, each in enumerate(left, 1):  # at once, before Python looks for circles
        assert each["files"] == []
        assert each["tensor_bytes"] <= before["tensor_bytes"] + count * AT_ONCE_BYTES
        assert not {"Engine", "Transformer", "Program", "Weight"} & set(each["objects"])
        assert each["room_for_forms"] == before["room_for_forms"]
    assert collected["objects"] == []
    assert collected["tensor_bytes"] <= before["tensor_bytes"] + KEPT_BYTES
