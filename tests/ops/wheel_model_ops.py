"""What the real wheel says of the ops a language model is made of: one process per mocked product.

Run as a script (`python -m tests.ops.wheel_model_ops PRODUCT FILE`) it writes the outcomes of
model_op_cases.py, and on an N150 the golden values of model_golden_cases.py too.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PRODUCTS = ("N150", "T3K", "TG", "P150")


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


@functools.cache
def _asked(product: str) -> Future[dict[str, Any]]:
    return _pool().submit(_ask, product)


def _ask(product: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.pt"
        run = subprocess.run(
            [sys.executable, "-m", "tests.ops.wheel_model_ops", product, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if run.returncode:
            raise RuntimeError(run.stderr[-3000:])
        return torch.load(path, weights_only=True)


def answers(product: str = "N150", *, ahead: tuple[str, ...] = ()) -> dict[str, Any]:
    """The wheel's answers as a product; `ahead` starts others that will be wanted soon."""
    from backends.dry_run.environment import unavailable

    reason = unavailable()
    if reason:
        pytest.skip(reason)
    for other in (product, *ahead):
        _asked(other)
    return _asked(product).result()


def main(product: str, path: str) -> None:
    import backends

    backends.select("dry-run", product)
    from backends.mesh import open_mesh
    from tests.ops import model_golden_cases, model_op_cases

    ttnn = backends.ttnn
    with open_mesh(product, from_column=product == "TG") as device:  # some ops want its cores
        found: dict[str, Any] = {"outcomes": model_op_cases.outcomes(ttnn, device, product)}
    if product == "N150":
        found["goldens"] = model_golden_cases.from_wheel(ttnn)
    torch.save(found, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
