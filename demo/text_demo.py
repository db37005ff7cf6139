"""The Galaxy demo: Llama 3.3 70B's cases on 32 chips (or any model and mesh you name).

FAKE_DEVICE=TG pytest demo/text_demo.py -k performance-batch-32
TTFT here is the time of the whole prefill, not divided by users.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from demo.cases import GALAXY_CASES, GalaxyCase
from demo.options import apply_options
from runtime.settings import Settings


@pytest.mark.parametrize("case", GALAXY_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("optimizations", ["performance", "accuracy"])
def test_demo_text(
    optimizations: str, case: GalaxyCase, given: dict[str, Any], settings: Settings
) -> None:
    from demo.run import run_text_demo

    case = apply_options(replace(case, optimizations=optimizations), given)
    if case.prefill_profile:
        case = replace(case, mode="prefill")
    run_text_demo(case, given, settings, ttft_per_user=False)
