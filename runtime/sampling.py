"""Choosing the next token from logits on the host, per user; and the settings a device samples by.

Order of operations as in HF transformers: penalties, temperature, top-k, top-p, draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

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
        checks = (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "0 (no limit) or a number of tokens"),
            ("top_p", 0 <= self.top_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1 is none)"),
        )
        for name, valid, rule in checks:
            if not valid:
                raise ValueError(f"sampling {name} is {getattr(self, name)}: use {rule}")

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
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise ValueError(f"sampling {name} is {value!r}: use a number")
        return cls(**values)  # type: ignore[arg-type]

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0

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
    """Settings of TT-NN's sampling op for 32 users; greedy is k 1, p 0, temperature 1."""

    temperature: torch.Tensor  # float32 [32]
    top_k: torch.Tensor  # int32 [32], 1..32
    top_p: torch.Tensor  # float32 [32]
    seed: int | None = None


def device_sampling(params: Sequence[SamplingParams]) -> DeviceSampling | None:
    """What the device needs to sample for these users, or None where only the host can."""
    if len(params) > DEVICE_BATCH:
        return None
    for user in params:
        if user.penalised or not (user.greedy or 1 <= user.top_k <= DEVICE_MAX_TOP_K):
            return None
    rows = [(1.0, 1, 0.0) if u.greedy else (u.temperature, u.top_k, u.top_p) for u in params]
    rows += [(1.0, 1, 0.0)] * (DEVICE_BATCH - len(rows))
    temperature, top_k, top_p = zip(*rows, strict=True)
    seeds = [u.seed for u in params if u.seed is not None and not u.greedy]
    return DeviceSampling(
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(top_p, dtype=torch.float32),
        seeds[0] if seeds else None,
    )


class HostSampler:
    """Samples one token per batch slot and remembers what penalties and seeds need."""

    def __init__(self, batch_size: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.params: list[SamplingParams] = [GREEDY] * batch_size
        self._draws: list[torch.Generator | None] = [None] * batch_size
        self._counts: dict[int, torch.Tensor] = {}  # slot -> times each token was generated
        self._prompts: dict[int, torch.Tensor] = {}  # slot -> whether the prompt has a token

    def assign(self, slot: int, params: SamplingParams, prompt: Sequence[int]) -> None:
        """Begin a new user in a slot."""
        self.release(slot)
        self.params[slot] = params
        if not params.greedy:
            draws = torch.Generator()
            if params.seed is None:
                draws.seed()
            else:
                draws.manual_seed(params.seed)
            self._draws[slot] = draws
        if params.penalised:
            self._counts[slot] = torch.zeros(self.vocab_size)
            seen = torch.zeros(self.vocab_size, dtype=torch.bool)
            seen[torch.tensor(list(prompt), dtype=torch.long)] = True
            self._prompts[slot] = seen

    def release(self, slot: int) -> None:
        """Forget the user of a slot."""
        self.params[slot] = GREEDY
        self._draws[slot] = None
        self._counts.pop(slot, None)
        self._prompts.pop(slot, None)

    def sample(self, logits: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        """Next token of each row: logits float32 [n, vocab], row i belongs to slots[i]."""
        logits = self._penalise(logits, slots)
        tokens = logits.argmax(dim=-1)
        rows = [i for i, slot in enumerate(slots) if not self.params[slot].greedy]
        if rows:
            tokens[rows] = self._draw(logits[rows], [slots[i] for i in rows])
        for slot, token in zip(slots, tokens.tolist(), strict=True):
            if slot in self._counts:
                self._counts[slot][token] += 1
        return tokens.to(torch.int32)

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

    def _draw(self, logits: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """One draw per row from its top-k, top-p distribution."""
        users = [self.params[slot] for slot in slots]
        top_k = torch.tensor([min(u.top_k or self.vocab_size, self.vocab_size) for u in users])
        temperature = torch.tensor([u.temperature for u in users]).unsqueeze(1)
        top_p = torch.tensor([u.top_p for u in users]).unsqueeze(1)
        values, tokens = torch.topk(logits / temperature, int(top_k.max()), dim=-1)
        values[torch.arange(values.shape[1]) >= top_k.unsqueeze(1)] = float("-inf")
        probabilities = values.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        # the likeliest token always stays; others while the mass before them is under top_p
        keep = before < top_p
        keep[:, 0] = True
        cumulative = (probabilities * keep).cumsum(dim=-1)
        uniform = torch.stack([torch.rand(1, generator=self._draws[slot]) for slot in slots])
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        chosen = chosen.clamp(max=keep.sum(dim=-1, keepdim=True) - 1)
        return tokens.gather(1, chosen).squeeze(1)
