"""The main job: any supported model on any mesh answers prompts, and is timed.

pytest demo/simple_text_demo.py -k "performance and batch-1"
Ids are in cases.py, overrides in options.py, the course of a run in flow.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from demo.cases import SIMPLE_CASES, Case
from demo.options import apply_options
from runtime.settings import Settings


@pytest.mark.parametrize("case", SIMPLE_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("optimizations", ["performance", "accuracy"])
def test_demo_text(
    optimizations: str, case: Case, given: dict[str, Any], settings: Settings
) -> None:
    from demo.run import run_text_demo

    case = apply_options(replace(case, optimizations=optimizations), given)
    run_text_demo(case, given, settings)
