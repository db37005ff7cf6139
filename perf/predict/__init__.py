"""Predicted TTFT and tokens/s/user: `python -m perf.predict`."""
