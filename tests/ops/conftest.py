"""The C loops as other processors would run them."""

from __future__ import annotations

import platform

import pytest
import torch

from backends.emulator.loops import native

# what other processors would run: registers of 32 and of 16 bytes, no units for bfloat16
BUILDS = {"this one": native._PROCESSOR, "AVX2": "-march=x86-64-v3", "plain": "-march=x86-64"}


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops as they are compiled for a kind of processor."""
    if request.param != "this one" and platform.machine() != "x86_64":
        pytest.skip("builds for other processors are tried on x86-64 alone")
    if request.param == "AVX2" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no AVX2")
    library = native.compiled(BUILDS[request.param])
    if library is None:
        pytest.skip("no C compiler here")
    monkeypatch.setattr(native, "library", lambda: library)
