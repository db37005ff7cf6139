"""Placement: frozen plans of memory and program configs per (phase, length, device).

A layer reads `ttnn.linear(x, self.w_gate, **plan.gate)`; which cores, which memory and which
fidelity that means is decided here and nowhere else. Start with matmul.py.
"""
