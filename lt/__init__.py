"""The terminal tool: queues demos, accuracy runs and predictions, and shows what came out."""

from backends import threads  # noqa: F401  (before torch)
