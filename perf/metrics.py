"""The figures of a run, from its times, by the definitions that are printed beside them."""

from __future__ import annotations

from dataclasses import dataclass

from perf.profiler import Profiler

TTFT_DEFINITION = (
    "TTFT = time of the compiled prefill of all users / users, tokenised input to first token"
)
WHOLE_TTFT_DEFINITION = (
    "TTFT = time of the compiled prefill of all users, tokenised input to first token"
)
FIRST_PREFILL = "; it was the first prefill of this length and includes what only a first one does"
SPEED_DEFINITION = (
    "tok/s/user = (N - 1) / time of decode iterations 1 to N - 1; iteration 0 compiles"
)
SAMPLED_TOKENS = (1, 128, 1024, 4096)  # tokens whose decode time is reported singly


@dataclass(frozen=True)
class Metrics:
    """Figures of one measured batch; zero where a phase did not run."""

    ttft_ms: float  # per user
    whole_ttft_ms: float  # of all users
    prefill_tokens_per_s: float
    decode_ms: float  # mean of iterations 1 to N - 1
    tokens_per_s_per_user: float
    tokens_per_s: float
    at_token: dict[int, float]  # tokens/s/user of single iterations
    compile_prefill_s: float | None  # None: the measured prefill was the first
    compile_decode_s: float


def measure(profiler: Profiler, *, users: int, prefill_tokens: int) -> Metrics:
    """Read the figures out of a profile; `prefill_tokens` are those of all users' prompts."""
    prefill = profiler.total("inference_prefill")
    iterations = profiler.times("inference_decode")
    counted = iterations[1:]
    decode = sum(counted)
    speed = len(counted) / decode if decode else 0.0
    return Metrics(
        ttft_ms=1000 * prefill / users,
        whole_ttft_ms=1000 * prefill,
        prefill_tokens_per_s=prefill_tokens / prefill if prefill else 0.0,
        decode_ms=1000 / speed if speed else 0.0,
        tokens_per_s_per_user=speed,
        tokens_per_s=speed * users,
        at_token={n: 1 / iterations[n - 1] for n in SAMPLED_TOKENS if 1 < n <= len(iterations)},
        compile_prefill_s=sum(profiler.times("compile_prefill")) or None,
        compile_decode_s=iterations[0] if iterations else 0.0,
    )
