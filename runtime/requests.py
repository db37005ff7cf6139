"""A generator's contracts: requests in, steps out, and what it needs of an engine."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from runtime.sampling import GREEDY, DeviceSampling, SamplingParams

if TYPE_CHECKING:
    from runtime.traces import Trace

Value = TypeVar("Value")
# work whose every step leaves the host free while a device goes on; it returns what it found
Steps = Generator[None, None, Value]


def in_turns(works: Sequence[Steps[Value]]) -> list[Value]:
    """What each work finds; a step of each in turn, so that their devices run side by side."""
    found: dict[int, Value] = {}
    going = dict(enumerate(works))
    while going:
        for number, work in list(going.items()):
            try:
                next(work)
            except StopIteration as end:
                found[number] = end.value
                del going[number]
    return [found[number] for number in range(len(works))]


class Finish(Enum):
    """Why a user's answer ended."""

    EOS = "eos"
    LENGTH = "length"


@dataclass(frozen=True)
class Request:
    """One prompt in tokens and how to answer it.

    `max_positions` is for stress tests: having reached it, positions go on from the prompt's end.
    `start` is the prompt's first position, for generators that decode their prompts; the cache
    before it stays as it is.
    `forced` tokens are fed in place of those chosen, the first one first (teacher forcing); steps
    report what was chosen.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams = GREEDY
    max_positions: int | None = None
    start: int = 0
    forced: Sequence[int] = ()
    is_long: bool = False  # its keys turn by other angles than those of short contexts

    @property
    def contents(self) -> Sequence[int]:
        """What the prompt's cache holds: where this is equal, prompts may share it."""
        return [~self.prompt[0], *self.prompt[1:]] if self.is_long else self.prompt

    @property
    def prompt_end(self) -> int:
        """First position after the prompt."""
        return self.start + len(self.prompt)

    @property
    def cache_length(self) -> int:
        """Positions the cache must hold: the last generated token is never written."""
        length = self.prompt_end + self.max_new_tokens - 1
        return length if self.max_positions is None else min(length, self.max_positions)

    def goes_on(self, num_new: int) -> bool:
        """Whether an answer of `num_new` tokens takes two more, the second after the first."""
        return num_new + 1 < self.max_new_tokens and not self.forced and self.max_positions is None

    def next_position(self, position: int) -> int:
        """Where the token after the one at `position` is written."""
        if self.max_positions is not None and position + 1 >= self.max_positions:
            return self.prompt_end
        return position + 1


class StepKind(Enum):
    """What a step ran."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Step:
    """One prefill of new users or one decode of all: new tokens and ends, by request number.

    `users` took part; one of them has no token while its prompt is still being decoded.
    """

    kind: StepKind
    seconds: float
    users: tuple[int, ...]
    tokens: dict[int, int] = field(default_factory=dict)
    finished: dict[int, Finish] = field(default_factory=dict)
    log_probs: dict[int, float] = field(default_factory=dict)  # of the tokens, where asked for

    def renumbered(self, numbers: Mapping[int, int]) -> Step:
        """The part of the requests in `numbers`, under the numbers given there."""

        def own(values: dict[int, Value]) -> dict[int, Value]:
            return {numbers[n]: value for n, value in values.items() if n in numbers}

        return replace(
            self,
            users=tuple(numbers[n] for n in self.users if n in numbers),
            tokens=own(self.tokens),
            finished=own(self.finished),
            log_probs=own(self.log_probs),
        )


class Engine(Protocol):
    """What the generator needs of runtime/engine.py."""

    max_batch_size: int
    max_seq_len: int
    block_size: int | None
    num_blocks: int
    max_prefill_chunk: int
    vocab_size: int
    short_context: int  # see rope_tables.short_context
    supports_device_sampling: bool

    def held_traces(self) -> list[Trace]:
        """Of all passes that are replayed."""
        ...

    def expect(self, slot: int, *, is_long: bool) -> None:
        """Whether the next user of a slot goes beyond `short_context`."""
        ...

    def prefilling(
        self,
        tokens: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        page_table: torch.Tensor | None = None,
        start_positions: Sequence[int] | None = None,
    ) -> Steps[torch.Tensor]:
        """Logits float32 [n, vocab] of each prompt's last token."""
        ...

    def decode(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        page_table: torch.Tensor | None = None,
        sampling: DeviceSampling | None = None,
        more: bool = False,
    ) -> torch.Tensor:
        """Logits float32 [B, vocab], or int32 [B] tokens with `sampling`."""
        ...

    def reset(self) -> None:
        """Forget all users."""
        ...
