"""How programs log, and how they end: in one line, whatever went wrong.

Exit codes: 0 done, 1 failed while at work, 2 refused as asked, 130 stopped by the user.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from loguru import logger
from tqdm import tqdm

# what TT-NN and torch say in a RuntimeError where a user's request is at fault, not the code
_REFUSALS = ("TT_FATAL", "DefaultCPUAllocator: can't allocate memory")

LONGEST_REASON = 1400  # characters: some list all that would work


def run(main: Callable[[], int | None], prog: str) -> NoReturn:
    """End the process with what `main` returns, or with one line and the code that fits."""
    code: int | str | None
    try:
        if sys.stderr is not None and not sys.stderr.closed:
            log_to()
        try:
            code = main() or 0
        except SystemExit as end:  # argparse has said why
            code = end.code
        _flush()
    except KeyboardInterrupt:
        code = _end("stopped", 130, prog)
    except BrokenPipeError:  # `| head` has read enough
        code = _end("", 1, prog)
    except RuntimeError as error:
        if not any(words in str(error) for words in _REFUSALS):
            raise
        code = _end(str(error)[:500], 1, prog)
    except MemoryError:
        code = _end("there is not enough memory for this", 1, prog)
    except OSError as error:
        where = f"{str(error.filename)[:200]}: " if error.filename else ""
        code = _end(f"{where}{error.strerror or error}", 1, prog)
    except ValueError as error:
        code = _end(str(error), 2, prog)
    sys.exit(code)


def log_to(stream: Any = None) -> None:
    """Log whole lines, above progress bars: what is said, and its level if that is not INFO.

    `stream`: where to, standard error if None.
    """
    logger.remove()
    logger.add(
        lambda message: tqdm.write(message, end="", file=stream or sys.stderr),
        format=lambda record: (
            "{message}\n"
            if record["level"].name == "INFO"
            else "<level>{level}: {message}</level>\n"
        ),
        colorize=(stream or sys.stderr).isatty(),
        catch=False,
    )


def _flush() -> None:
    if sys.stdout is not None:  # closed by whoever started us
        sys.stdout.flush()


def _end(reason: str, code: int, prog: str) -> int:
    with contextlib.suppress(OSError):
        _flush()
    # what could not be written is not tried again when the interpreter goes
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    reason = " ".join(reason.split())
    if len(reason) > LONGEST_REASON:  # what was asked for is as long: its ends say enough
        half = LONGEST_REASON // 2
        reason = f"{reason[:half]} ... {reason[-half:]}"
    if reason:
        with contextlib.suppress(OSError):
            print(f"{prog}: error: {reason}", file=sys.stderr)
    return code
