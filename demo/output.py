"""Standard output that ends the run where nobody reads it or its disk is full.

pytest and loguru would print a traceback for each line that cannot be written.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest


class Output:
    """A text stream on file descriptor 1."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.is_lost = stream, False

    def write(self, text: str) -> int:
        """Write, or end the session in order: what was opened is closed."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, action: Any) -> None:
        if self.is_lost:
            return
        try:
            action()
        except OSError as error:
            self.is_lost = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            self.stream.flush()  # what it still holds is not tried again when Python ends
            reason = "nobody reads the output"  # `| head` has read enough
            if not isinstance(error, BrokenPipeError):
                reason = f"cannot write the output: {error.strerror}"
                print(f"error: {reason}", file=sys.stderr)
            pytest.exit(reason, returncode=1)
