"""What command lines share: bounded numbers, and an end in one line whatever went wrong.

Exit codes: 0 done, 1 failed while at work, 2 refused as asked, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from models.fields import shown


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads a whole number from `low` to `high`; for argparse's and pytest's `type`."""

    def read(text: str) -> int:
        digits = text.strip()
        sign, digits = digits[:1] == "-", digits.lstrip("-+")
        # int() takes "1_000" and other scripts' digits, and refuses 5,000 of them in its own words
        if not digits.isascii() or not digits.isdigit() or len(digits) > 30:
            raise _refused(text, f"a whole number from {low} to {high}")
        value = -int(digits) if sign else int(digits)
        if not low <= value <= high:
            raise _refused(text, f"a whole number from {low} to {high}")
        return value

    return read


def real(low: float, high: float) -> Callable[[str], float]:
    """Reads a finite number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # also of NaN
            raise _refused(text, f"a number from {low:g} to {high:g}")
        return value

    return read


class _Refused(argparse.ArgumentTypeError, ValueError):
    """argparse shows the words of the first; who calls a reader by itself expects the second."""


def _refused(text: str, needed: str) -> _Refused:
    return _Refused(f"the value is {shown(text)}: use {needed}")


def run(main: Callable[[], int | None], prog: str) -> NoReturn:
    """End the process with what `main` returns, or with one line and the code that fits."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _end("stopped", 130, prog)
    except BrokenPipeError:  # `| head` has read enough
        code = _end("", 1, prog)
    except RuntimeError as error:
        if not str(error).startswith("TT_FATAL"):
            raise
        code = _end(str(error)[:500], 1, prog)  # refused in TT-NN's words
    except MemoryError:
        code = _end("there is not enough memory for this", 1, prog)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _end(f"{where}{error.strerror or error}", 1, prog)
    except ValueError as error:
        code = _end(str(error), 2, prog)
    sys.exit(code)


def _end(reason: str, code: int, prog: str) -> int:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # what could not be written is not tried again when the interpreter goes
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if reason:
        with contextlib.suppress(OSError):
            print(f"{prog}: error: {' '.join(reason.split())}", file=sys.stderr)
    return code
