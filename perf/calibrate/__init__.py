"""Finds the performance model's constants and judges them: `python -m perf.calibrate`."""
