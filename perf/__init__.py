"""Figures: timing, records, predictions from op lists, targets and gates."""
