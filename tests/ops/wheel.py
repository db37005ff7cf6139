"""What the real wheel answers to the questions of these tests: one process on a mock N150.

Run as a script it writes the answers to a file; `answers()` runs it once and reads them. Questions
are built from seeds on both sides, so only answers travel.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
BLOCK_TYPES = ("bfloat8_b", "bfloat4_b")


@functools.cache
def answers() -> dict[str, Any]:
    """The wheel's formats, placements and golden values; skips where there is no wheel."""
    from backends.dry_run.environment import unavailable

    reason = unavailable()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.pt"
        run = subprocess.run(
            [sys.executable, "-m", "tests.ops.wheel", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        return torch.load(path, weights_only=True)


def numbers() -> dict[str, torch.Tensor]:
    """A million float32 values that are hard to round, in rows of 64, by kind."""
    generator = torch.Generator().manual_seed(7)
    count = 1 << 17

    def normal() -> torch.Tensor:
        return torch.randn(count, generator=generator)

    def integers(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    zeros = normal()
    zeros[integers(0, 2).bool()] = 0.0
    zeros[integers(0, 4) == 0] = -0.0
    kinds = {
        "normal": normal(),
        "bfloat16": normal().bfloat16().float(),
        "wide exponents": normal() * 2.0 ** integers(-30, 31),
        "ties": integers(-256, 257).float() / 128,
        "near saturation": 2 - integers(0, 64).float() / 4096,
        "zeros of both signs": zeros,
        "random bits with infinities and NaN": integers(-(2**31), 2**31).int().view(torch.float32),
        "denormals": integers(0, 2**23).int().view(torch.float32),
    }
    return {kind: values.reshape(1, 1, -1, 64) for kind, values in kinds.items()}


def _formats(ttnn: Any) -> dict[str, torch.Tensor]:
    found = {}
    for kind, values in numbers().items():
        for name in BLOCK_TYPES:
            tensor = ttnn.from_torch(values, dtype=getattr(ttnn, name), layout=ttnn.TILE_LAYOUT)
            found[f"{kind} as {name}"] = ttnn.to_torch(tensor)
    return found


def main(path: str) -> None:
    import backends

    backends.select("dry-run", "N150")
    from backends.mesh import open_mesh
    from tests.ops import golden_cases, placement_cases

    ttnn = backends.ttnn
    with open_mesh("N150") as device:
        found = {
            "formats": _formats(ttnn),
            "placements": placement_cases.outcomes(ttnn, device),
            "memory": placement_cases.bank_bytes(ttnn, device),
            "goldens": golden_cases.from_wheel(ttnn),
        }
    torch.save(found, path)


if __name__ == "__main__":
    main(sys.argv[1])
