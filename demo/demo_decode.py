"""The decode-only demo: prefill as decode, for work on the decode side; stress runs.

FAKE_DEVICE=TG pytest demo/demo_decode.py -k full --layers 2
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from demo.cases import DECODE_CASES, DecodeCase
from demo.options import apply_options
from runtime.settings import Settings


@pytest.mark.parametrize("case", DECODE_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("optimizations", ["performance"])
def test_llama_demo(
    optimizations: str, case: DecodeCase, given: dict[str, Any], settings: Settings
) -> None:
    from demo.decode_run import run_decode_demo

    case = apply_options(replace(case, optimizations=optimizations), given)
    run_decode_demo(case, given, settings)
