"""Choosing the next token from logits on the host, per user; and the settings a device samples by.

Order of operations as in HF transformers: penalties, temperature, top-k, top-p, draw. Each draw has
a seed of its own, made of the request's and of how many draws it has made: so a request draws the
same in any slot, beside anybody, on the host as on the (emulated) device.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from models.numbers import check_number

DEVICE_BATCH = 32  # TT-NN's sampling op works on 32 users
DEVICE_MAX_TOP_K = 32


@dataclass(frozen=True)
class SamplingParams:
    """How one user's tokens are chosen; temperature 0 is greedy, top_k 0 means no limit."""

    temperature: float = 0.0
    top_k: int = 32
    top_p: float = 0.08
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name != "seed" or value is not None:
                check_number(entry.name, value, f"sampling {entry.name}")

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> SamplingParams:
        """Build from parsed options; an unknown key is an error that lists the known ones."""
        known = {field.name for field in fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise ValueError(
                f"unknown sampling parameter {', '.join(sorted(unknown))}: "
                f"choose from {', '.join(sorted(known))}"
            )
        return cls(**values)  # type: ignore[arg-type]

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0

    @property
    def fits_device(self) -> bool:
        """Whether TT-NN's sampling op can do what is asked."""
        return not self.penalised and (self.greedy or 1 <= self.top_k <= DEVICE_MAX_TOP_K)

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on the tokens before it."""
        neutral = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return neutral != (0, 0, 1)

    def for_user(self, index: int) -> SamplingParams:
        """The same settings with a seed of the user's own, so that users do not draw alike."""
        return self if self.seed is None else replace(self, seed=self.seed + index)


GREEDY = SamplingParams()


@dataclass(frozen=True)
class DeviceSampling:
    """Settings of TT-NN's sampling op for 32 users; greedy is k 1, p 0, temperature 1.

    `seeds` are those of each user's next draw; None where nobody draws.
    """

    temperature: torch.Tensor  # float32 [32]
    top_k: torch.Tensor  # int32 [32], 1..32
    top_p: torch.Tensor  # float32 [32]
    seeds: torch.Tensor | None = None  # int32 [32]


def device_sampling(
    params: Sequence[SamplingParams], seeds: Sequence[int] = ()
) -> DeviceSampling | None:
    """What the device needs to sample for these users, or None where only the host can."""
    if len(params) > DEVICE_BATCH or not all(user.fits_device for user in params):
        return None
    rows = [(1.0, 1, 0.0) if u.greedy else (u.temperature, u.top_k, u.top_p) for u in params]
    rows += [(1.0, 1, 0.0)] * (DEVICE_BATCH - len(rows))
    temperature, top_k, top_p = zip(*rows, strict=True)
    draws = None
    if not all(user.greedy for user in params):
        draws = torch.tensor([*seeds, *[0] * (DEVICE_BATCH - len(seeds))], dtype=torch.int32)
    return DeviceSampling(
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(top_p, dtype=torch.float32),
        draws,
    )


@dataclass
class Draws:
    """One request's random numbers, numbered; without a seed of its own they are new each time."""

    seed: int = field(default_factory=lambda: secrets.randbits(63))
    count: int = 0  # taken so far

    @property
    def next_seed(self) -> int:
        """31 bits for the next draw, unlike those of other draws and other requests."""
        digest = hashlib.blake2b(struct.pack("<qq", self.seed, self.count), digest_size=4).digest()
        return int.from_bytes(digest, "little") >> 1

    def take(self) -> float:
        """The next number, from 0 to 1."""
        number = torch.rand(1, generator=torch.Generator().manual_seed(self.next_seed))
        self.count += 1
        return float(number)


class HostSampler:
    """Samples one token per batch slot and remembers what penalties and seeds need."""

    def __init__(self, batch_size: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.params: list[SamplingParams] = [GREEDY] * batch_size
        self.draws: list[Draws | None] = [None] * batch_size
        self._counts: dict[int, torch.Tensor] = {}  # slot -> times each token was generated
        self._prompts: dict[int, torch.Tensor] = {}  # slot -> whether the prompt has a token

    def assign(self, slot: int, params: SamplingParams, prompt: Sequence[int]) -> None:
        """Begin a new user in a slot."""
        self.release(slot)
        self.params[slot] = params
        if not params.greedy:
            self.draws[slot] = Draws() if params.seed is None else Draws(params.seed)
        if params.penalised:
            self._counts[slot] = torch.zeros(self.vocab_size)
            seen = torch.zeros(self.vocab_size, dtype=torch.bool)
            seen[torch.tensor(list(prompt), dtype=torch.long)] = True
            self._prompts[slot] = seen

    def release(self, slot: int) -> None:
        """Forget the user of a slot."""
        self.params[slot] = GREEDY
        self.draws[slot] = None
        self._counts.pop(slot, None)
        self._prompts.pop(slot, None)

    def sample(self, logits: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        """Next token of each row: logits float32 [n, vocab], row i belongs to slots[i]."""
        logits = self._penalise(logits, slots)
        tokens = logits.argmax(dim=-1)
        for row, slot in enumerate(slots):
            draws = self.draws[slot]
            if draws is not None:
                tokens[row] = draw(logits[row], self.params[slot], draws.take())
            if slot in self._counts:
                self._counts[slot][int(tokens[row])] += 1
        return tokens.to(torch.int32)

    def device_sampling(self, first: int, count: int) -> DeviceSampling | None:
        """The device's settings for the next step of these slots; None: the host must sample."""
        seeds = [draws.next_seed if draws else 0 for draws in self.draws[first : first + count]]
        return device_sampling(self.params[first : first + count], seeds)

    def note_device_draws(self, slots: Sequence[int]) -> None:
        """The device has drawn for these slots."""
        for slot in slots:
            draws = self.draws[slot]
            if draws is not None:
                draws.count += 1

    def _penalise(self, logits: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        rows = [i for i, slot in enumerate(slots) if slot in self._counts]
        if not rows:
            return logits
        logits = logits.clone()
        for i in rows:
            params, counts = self.params[slots[i]], self._counts[slots[i]]
            seen = self._prompts[slots[i]] | (counts > 0)
            factor = params.repetition_penalty
            row = torch.where(logits[i] > 0, logits[i] / factor, logits[i] * factor)
            row = torch.where(seen, row, logits[i])
            row = row - params.frequency_penalty * counts
            logits[i] = row - params.presence_penalty * (counts > 0)
        return logits


def draw(logits: torch.Tensor, params: SamplingParams, point: float) -> int:
    """The token of [vocab] whose share of the top-k, top-p distribution holds `point` in 0 to 1.

    Settings that the device could draw by are rounded as it rounds them, and equal logits come in
    its order, so that both draw the same token.
    """
    limit = min(params.top_k or len(logits), len(logits))
    least = logits.topk(limit).values[-1]
    tokens = (logits >= least).nonzero().squeeze(1)
    values, order = logits[tokens].sort(descending=True, stable=True)
    values, order = values[:limit], order[:limit]
    settings = torch.tensor([1 / params.temperature, params.top_p])
    if params.fits_device:
        settings = settings.bfloat16().float()
    inverse_temperature, top_p = settings
    chances = torch.softmax(values * inverse_temperature, dim=-1)
    before = chances.cumsum(-1) - chances
    # the likeliest token always stays; others while the mass before them is under top_p
    keep = before < top_p
    keep[0] = True
    reached = (chances * keep).cumsum(-1)
    place = int((reached <= point * reached[-1]).sum())
    return int(tokens[order[min(place, int(keep.sum()) - 1)]])
