"""One model over devices, batches, contexts, precisions and groups: `python -m perf.sweep`."""
