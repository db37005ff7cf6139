"""What shows that a run is alive: a bar for prefill, one line for decode, the text as it comes.

Every iteration's speed goes to a log file; --print_iterations prints it, too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger
from tqdm import tqdm

from demo import report
from demo.hooks import wrapped
from runtime.chunking import plan_chunks
from runtime.generator import Generator
from runtime.image_generator import ImageGenerator
from runtime.requests import Step

if TYPE_CHECKING:
    from runtime.tokenizer import Tokenizer

ITERATIONS = Path("generated/iterations.log")


class ShownGenerator(Generator):
    """A generator that shows how far a prefill is, where somebody watches."""

    def prefill(self, slots: Sequence[int]) -> Step:
        """Prefill as usual, under a bar."""
        if not sys.stderr.isatty():
            return super().prefill(slots)
        lengths = [len(user.request.prompt) for slot in slots if (user := self.users[slot])]
        with layer_bar(self.engines, lengths):
            return super().prefill(slots)


class ShownImageGenerator(ShownGenerator, ImageGenerator):
    """The same for users with images."""


@contextlib.contextmanager
def layer_bar(engines: Sequence[Any], lengths: Sequence[int]) -> Iterator[None]:
    """Count every layer's prefill; the total is known for one user, whose passes are its chunks."""
    layers = [layer for engine in engines for layer in engine.model.layers]
    total = None
    if len(lengths) == 1:
        chunks = plan_chunks(lengths[0], max_chunk=engines[0].max_prefill_chunk)
        total = len(chunks) * len(engines[0].model.layers)
    with tqdm(total=total, desc="prefill", unit="layer", leave=False) as bar:

        def ticking(run: Callable[..., Any]) -> Callable[..., Any]:
            def prefill(*arguments: Any, **named: Any) -> Any:
                result = run(*arguments, **named)
                bar.update()
                return result

            return prefill

        with wrapped(layers, "prefill", ticking):
            yield


class TextStream:
    """The text of tokens as they come, line by line; a character may need several tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.begin = self.read = 0  # tokens whose text is known: decoders look at a neighbour
        self.line = ""

    def add(self, token: int) -> list[str]:
        """The lines that this token ends."""
        self.tokens.append(token)
        before = self.tokenizer.decode(self.tokens[self.begin : self.read])
        now = self.tokenizer.decode(self.tokens[self.begin :])
        if now.endswith("\ufffd") or len(now) <= len(before):
            return []
        self.begin, self.read = self.read, len(self.tokens)
        *lines, self.line = (self.line + now[len(before) :]).split("\n")
        return lines

    def rest(self) -> str:
        """The last line, once all tokens have come."""
        known = self.tokenizer.decode(self.tokens[self.begin : self.read])
        return self.line + self.tokenizer.decode(self.tokens[self.begin :])[len(known) :]


class DecodeShow:
    """One live line with speed, a single user's text as it comes, and the log of iterations."""

    def __init__(self, total: int, stream: TextStream | None, *, log: bool, printed: bool) -> None:
        """`log`: write iterations to their file; `printed`: show them, too."""
        # disable=None: no bar where nobody watches
        self.bar = tqdm(total=total, desc="decode", leave=False, disable=None)
        self.stream, self.printed = stream, printed
        self.log: TextIO | None = None
        if log:
            with self._logging():
                ITERATIONS.parent.mkdir(exist_ok=True)
                self.log = ITERATIONS.open("w", buffering=1, encoding="utf-8")

    def __enter__(self) -> DecodeShow:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()
        if self.stream is not None:
            logger.info(self.stream.rest().rstrip() + "\n")
        if self.log is not None:
            with self._logging():
                self.log.close()

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        """What the disk does not take is no reason to end a run."""
        try:
            yield
        except OSError as error:
            self.log = None
            logger.warning(f"iterations are not logged in {ITERATIONS}: {error.strerror}")

    def tokens(self, step: Step) -> None:
        """Show the single user's next token."""
        if self.stream is None:
            return
        for token in step.tokens.values():
            if not self.stream.tokens:
                logger.info("==USER 0 - OUTPUT")
            for line in self.stream.add(token):
                logger.info(line)

    def iteration(self, number: int, step: Step) -> None:
        """A decode step has been made."""
        line = report.iteration_line(number, step)
        if self.log is not None:
            with self._logging():
                self.log.write(line + "\n")
        if self.printed:
            logger.info(line)
        tail = f" {self.stream.line[-40:]}" if self.stream else ""
        self.bar.set_postfix_str(f"{1 / step.seconds:.1f} tok/s/user{tail}", refresh=False)
        self.bar.update()
