"""The comparison with llama.cpp needs what nobody has to have, and says so."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import pytest
import torch

from perf import host_llama, host_speed


def test_without_llama_cpp_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["host_speed", "--against", "llama.cpp", "--json"])
    host_speed.main()
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["skipped"] and "pip install" in found["skipped"]


class Turn:
    """Whoever takes turns: counts its runs."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def prefill(self) -> torch.Tensor:
        self.log.append(f"{self.name} prefill")
        return torch.zeros(1)

    def decode_after(self, token: torch.Tensor) -> Any:
        self.log.append(f"{self.name} decode")
        yield from (3.0, 1.0, 2.0)


def test_both_take_turns_and_medians_are_divided() -> None:
    log: list[str] = []
    ours: Any = Turn(log, "ours")
    prefill, decode = host_llama.take_turns(ours, Turn(log, "theirs"), 2)  # type: ignore[arg-type]
    assert (
        log == [f"{who} {what}" for who in ("ours", "theirs") for what in ("prefill", "decode")] * 2
    )
    assert decode == host_llama.Pair(2.0, 2.0) and decode.ratio == 1
    assert 0 < prefill.ours < 1 and host_llama.Pair(2.0, 3.0).ratio == 1.5
