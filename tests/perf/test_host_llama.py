"""The comparison with llama.cpp, without it."""

import os
import signal

import pytest

from perf import host_llama


def _ends(how: int | None) -> None:
    if how is not None:
        os.kill(os.getpid(), how)


@pytest.mark.parametrize(("how", "lives"), [(None, True), (signal.SIGILL, False)])
def test_a_kernel_that_the_processor_does_not_know_is_found_out_in_another_process(
    how: int | None, lives: bool
) -> None:
    assert host_llama.survives(_ends, how) is lives


def test_a_processs_peak_is_its_own() -> None:
    """Not that of a large process which started it."""
    held = bytearray(512 << 20)
    held[::4096] = b"1" * len(held[::4096])
    assert host_llama.peak_mib() > 512 + 100
    assert host_llama.alone(host_llama.nothing_but_imports) < host_llama.peak_mib() - 400
