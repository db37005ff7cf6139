"""Values of emulated ops against the golden functions of the wheel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import backends
from backends.mesh import open_mesh
from tests.ops import golden_cases
from tests.ops.wheel import answers

backends.select("emulator")
ttnn: Any = backends.ttnn
EXACT = {
    "compute_kernel_config": ttnn.WormholeComputeKernelConfig(
        math_fidelity=ttnn.MathFidelity.HiFi4, fp32_dest_acc_en=True
    )
}


@pytest.fixture(scope="module")
def device() -> Any:
    with open_mesh("N150") as mesh:
        yield mesh


class Emulated:
    """The names of ttnn, and its ops with results as torch tensors."""

    def op(self, name: str) -> Any:
        kernel = EXACT if name in ("matmul", "linear") else {}

        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            return ttnn.to_torch(getattr(ttnn, name)(*args, **kwargs, **kernel)).float()

        return call

    def __getattr__(self, name: str) -> Any:
        return getattr(ttnn, name)


@pytest.mark.parametrize("name", golden_cases.CASES)
def test_values_equal_the_wheels_golden_function(name: str, device: Any) -> None:
    operands, call = golden_cases.CASES[name]
    tensors = [
        ttnn.from_torch(values, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=device)
        for values in operands
    ]
    ours = call(Emulated(), *tensors)
    expected = answers()["goldens"][name]
    assert ours.shape == expected.shape
    # golden functions compute in float32: ours differ by roundings to bfloat16 (8 bits), one of
    # the result and, with an activation inside, one before
    torch.testing.assert_close(ours, expected, rtol=2**-7, atol=2**-8)
