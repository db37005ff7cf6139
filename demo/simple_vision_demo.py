"""Images in, text out: a vision model on one chip or a line of chips answers, and is timed.

pytest demo/simple_vision_demo.py -k "batch1-trace"
Everything but the images is as in simple_text_demo.py; ids are in cases.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from demo.cases import VISION_CASES, VisionCase
from demo.options import apply_options
from runtime.settings import Settings


@pytest.mark.parametrize("case", VISION_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("length", ["normal"])
def test_multimodal_demo_text(
    length: str, case: VisionCase, given: dict[str, Any], settings: Settings
) -> None:
    from demo.run import run_text_demo

    run_text_demo(apply_options(case, given), given, settings)
