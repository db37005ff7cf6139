"""Figures of answered requests as a client sees them: latency percentiles, rates, goodput.

TTFT runs from sending a request to its first token, waiting included; t/s/u is (tokens - 1) over
the time from first to last token, of each request.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (50, 90, 99)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Place:
    """What answered, as our server says among its metrics; of another server nothing is known."""

    backend: str = "unknown"
    device: str = "unknown"
    mesh_shape: tuple[int, int] = (0, 0)
    data_parallel: int = 1
    optimizations: str = ""

    @classmethod
    def of_metrics(cls, text: str) -> Place:
        """From the line of serving/platform.py's."""
        line = next((x for x in text.splitlines() if x.startswith("tt_device_info{")), None)
        if line is None:
            return cls()
        labels = dict(_LABEL.findall(line))
        rows, columns = map(int, labels["mesh"].split("x"))
        return cls(
            labels["backend"],
            labels["device"],
            (rows, columns),
            int(labels["data_parallel"]),
            labels["optimizations"].encode().decode("unicode_escape"),
        )

    @classmethod
    def of_server(cls, base_url: str) -> Place:
        """Ask the server of an OpenAI address (.../v1)."""
        address = base_url.rstrip("/").removesuffix("/v1") + "/metrics"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return cls.of_metrics(answer.read().decode())
        except (OSError, ValueError):
            return cls()


@dataclass(frozen=True)
class Answer:
    """One answered request."""

    text: str
    tokens: int
    ttft_s: float
    decode_s: float
    start_s: float = 0.0  # when it was sent, since the first one was

    @property
    def end_s(self) -> float:
        return self.start_s + self.ttft_s + self.decode_s

    @property
    def tokens_per_s(self) -> float | None:
        """Of this request; None where there is but one token."""
        return (self.tokens - 1) / self.decode_s if self.tokens > 1 and self.decode_s else None

    @property
    def ms_per_token(self) -> float | None:
        return None if self.tokens_per_s is None else 1000 / self.tokens_per_s


@dataclass(frozen=True)
class Figures:
    """Of many answers; percentiles by number (50, 90, 99), the slow end being high."""

    requests: int
    tokens: int
    seconds: float  # from the first request to the last token
    ttft_ms: dict[int, float]
    tokens_per_s_per_user: dict[int, float]
    good: int  # requests that met both limits, where there are limits

    @classmethod
    def of(
        cls,
        answers: Sequence[Answer],
        *,
        ttft_limit_ms: float | None = None,
        token_limit_ms: float | None = None,
    ) -> Figures:
        """Reduce answers; a request is good if it kept every limit that is given."""

        def is_good(answer: Answer) -> bool:
            slow_start = ttft_limit_ms is not None and 1000 * answer.ttft_s > ttft_limit_ms
            slow = token_limit_ms is not None and (answer.ms_per_token or 0) > token_limit_ms
            return not slow_start and not slow

        ttft = [1000 * answer.ttft_s for answer in answers]
        # the 99th percentile of slowness is the 1st of speed
        speeds = [-speed for answer in answers if (speed := answer.tokens_per_s) is not None]
        return cls(
            requests=len(answers),
            tokens=sum(answer.tokens for answer in answers),
            seconds=max(answer.end_s for answer in answers),
            ttft_ms={p: float(np.percentile(ttft, p)) for p in PERCENTILES},
            tokens_per_s_per_user={
                p: -float(np.percentile(speeds, p)) if speeds else 0.0 for p in PERCENTILES
            },
            good=sum(map(is_good, answers)),
        )

    @property
    def tokens_per_s(self) -> float:
        """Of all users together."""
        return self.tokens / self.seconds

    @property
    def goodput(self) -> float:
        """Good requests per second."""
        return self.good / self.seconds


def provenance(backend: str) -> str:
    """Whose clock it was: only silicon's tells how fast a device is."""
    return "measured" if backend == "silicon" else "host"


def show(figures: Figures, backend: str, device: str) -> None:
    """Print them, with whose they are."""
    clock = "measured on" if provenance(backend) == "measured" else "this computer's clock,"
    whose = f"{clock} {backend}, {device}"
    print(f"\n{figures.requests} requests, {figures.tokens} tokens in {figures.seconds:.1f} s")
    print(f"({whose})")
    heads = "".join(f"{'p' + str(p):>10}" for p in PERCENTILES)
    print(f"{'':<22}{heads}")
    for name, row in (
        ("TTFT [ms]", figures.ttft_ms),
        ("tokens/s/user", figures.tokens_per_s_per_user),
    ):
        print(f"{name:<22}" + "".join(f"{row[p]:>10.1f}" for p in PERCENTILES))
    print(f"{'tokens/s':<22}{figures.tokens_per_s:>10.1f}")
    print(f"{'goodput [requests/s]':<22}{figures.goodput:>10.2f}  ({figures.good} good)")
