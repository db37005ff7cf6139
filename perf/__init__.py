"""Figures: timing, records, predictions from op lists, targets and gates."""

from backends import threads  # noqa: F401  (before torch)
