"""Serving through vLLM: a platform plugin that runs the demos' engines under vLLM's own scheduler.

vLLM finds the two functions below by the entry points in pyproject.toml. Read next: platform.py
(what vLLM is told), worker.py (its life), runner.py (one step), sampling.py. Without vLLM nothing
here but options.py, model_files.py and tenstorrent.py can be imported, and nothing else needs it.
"""

from __future__ import annotations

from backends import threads  # noqa: F401  (before torch)

VISION = "MllamaForConditionalGeneration"


def platform_plugin() -> str:
    """The class by which vLLM knows the device."""
    return "serving.platform.TTPlatform"


def register() -> None:
    """Tell vLLM what our model families are, without reading its own code of them."""
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    from models.families import FAMILIES
    from serving.platform import TTPlatform
    from serving.text_model import TextModel

    if isinstance(current_platform, TTPlatform):
        for architecture in FAMILIES:
            ModelRegistry.register_model(architecture, TextModel)
        ModelRegistry.register_model(VISION, "serving.vision_model:VisionModel")  # read if wanted
