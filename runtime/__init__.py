"""Running a model: settings, tokens, pages, sampling, and the generator that drives an engine."""

from backends import threads  # noqa: F401  (before torch)
