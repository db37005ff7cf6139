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
