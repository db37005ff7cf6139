"""The demos: pytest files that run a model, print what it says, and measure it."""

from backends import threads  # noqa: F401  (before torch)
