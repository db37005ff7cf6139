"""The dry run as a program: `python -m runtime.dry_run` runs a model through TT-NN on mock chips.

How the wheel is fooled is backends/dry_run. Here: __main__.py is the command line, worker.py starts
processes, check.py is such a process, passes.py what it runs, report.py what people read.
"""
