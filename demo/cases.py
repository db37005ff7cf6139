"""What the demos run by default: one line per id. Data only; options.py overrides it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from models.numbers import check_number
from runtime.sampling import GREEDY, SamplingParams

QUESTIONS = "input_data_questions_prefill_128"
REASONING = "input_data_questions_reasoning"
EVAL_1 = "eval_repeat_prompts_batch1"
EVAL_32 = "eval_repeat_prompts_batch32"


@dataclass(frozen=True)
class PageParams:
    """Size of a paged KV cache, per data-parallel group."""

    block_size: int = 32  # tokens
    max_num_blocks: int = 1024

    SPELLINGS: ClassVar[dict[str, str]] = {
        "block_size": "block_size",
        "page_block_size": "block_size",
        "max_num_blocks": "max_num_blocks",
        "page_max_num_blocks": "max_num_blocks",
        "page_max_num_blocks_per_dp": "max_num_blocks",
    }

    def __post_init__(self) -> None:
        check_number("block_size", self.block_size, "page block_size")
        check_number("max_num_blocks", self.max_num_blocks, "page max_num_blocks")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PageParams:
        """Build from parsed options; an unknown key is an error that lists the known ones."""
        known = {}
        for name, value in values.items():
            if name not in cls.SPELLINGS:
                names = ", ".join(cls.SPELLINGS)
                raise ValueError(f"unknown page parameter {name}: choose from {names}")
            check_number(cls.SPELLINGS[name], value, f"page {name}")
            known[cls.SPELLINGS[name]] = value
        return cls(**known)


LONG_PAGES = PageParams(block_size=64, max_num_blocks=2048)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One demo run; what all demos have in common."""

    id: str
    input_prompts: str = QUESTIONS  # a file, or a set in sample_prompts
    instruct: bool = True
    repeat_batches: int = 1
    max_seq_len: int = 1024
    batch_size: int = 1  # users per data-parallel group
    max_generated_tokens: int = 200
    paged_attention: bool = True
    page_params: PageParams = PageParams()
    sampling_params: SamplingParams | tuple[SamplingParams, ...] = GREEDY
    stop_at_eos: bool = True
    optimizations: str = "performance"
    decoder_config_file: Path | None = None
    data_parallel: int = 1
    num_layers: int | None = None  # None: all of them
    weights: str = "instruct"
    enable_trace: bool = True
    sample_on_device: bool = True
    share_prefixes: bool = False
    print_outputs: bool = False
    print_iterations: bool = False
    token_accuracy: bool = False
    log_probs: bool = False
    pcc_check: bool = False
    stress_test: bool = False
    mode: str = "full"
    ci_only: bool = False
    rotate_prompts: bool = True  # in every repeated batch users take their neighbour's prompt
    compare_repeats: bool = False  # equal prompts must get equal answers
    sweep: tuple[str, ...] = ()  # prompt sets to run one after the other
    prefix_cached_ratio: float = 0.0  # share of each prompt that is in the cache already
    default_device: str = "N150"
    images: int = 0  # most images of one prompt; 0: text alone
    image: Path | None = None  # seen in place of the prompts' own

    @property
    def users(self) -> int:
        """Users of all data-parallel groups."""
        return self.batch_size * self.data_parallel

    @property
    def sampling(self) -> list[SamplingParams]:
        """Each user's sampling."""
        chosen = self.sampling_params
        if isinstance(chosen, tuple):
            return [chosen[user % len(chosen)] for user in range(self.users)]
        return [chosen.for_user(user) for user in range(self.users)]


def spread(
    users: int,
    *,
    penalty: tuple[float, float] = (0.0, 1.0),
    repetition: tuple[float, float] = (1.0, 1.5),
) -> tuple[SamplingParams, ...]:
    """Different sampling for every user, from greedy and narrow to hot and wide."""

    def between(low: float, high: float, i: int) -> float:
        return low + (high - low) * i / (users - 1)

    return tuple(
        SamplingParams(
            temperature=between(0, 1, i),
            top_p=between(0.08, 1, i),
            top_k=round(between(1, 32, i)),
            seed=i,
            presence_penalty=between(*penalty, i),
            frequency_penalty=between(*penalty, i),
            repetition_penalty=between(*repetition, i),
        )
        for i in range(users)
    )


def _long(thousands: int, **fields: Any) -> dict[str, Any]:
    return {"input_prompts": f"input_data_long_{thousands}k", **fields}


# --- simple_text_demo.py: any model, any mesh

_SIMPLE: dict[str, dict[str, Any]] = {
    "batch-1": {},
    "batch-32": {"batch_size": 32},
    "batch-32-non-uniform-sampling": {"batch_size": 32, "sampling_params": spread(32)},
    "batch-32-log-probs": {"batch_size": 32, "log_probs": True},
    "long-context": _long(64, max_seq_len=131072, page_params=LONG_PAGES),
    "long-context-64k": _long(64, max_seq_len=131072, page_params=LONG_PAGES),
    "long-context-32k": _long(32, max_seq_len=65536, page_params=PageParams(64, 1024)),
    "long-context-16k": _long(16, max_seq_len=32768),
    "reasoning-1": {
        "input_prompts": REASONING, "max_seq_len": 16384, "max_generated_tokens": 15000,
        "stop_at_eos": False,
    },
    "ci-1": {
        "max_seq_len": 8192, "max_generated_tokens": 4096, "stop_at_eos": False, "ci_only": True,
    },
    "ci-32": {
        "max_seq_len": 2048, "batch_size": 32, "max_generated_tokens": 1024,
        "page_params": PageParams(64, 1024), "stop_at_eos": False, "ci_only": True,
    },
    "DP-4-b1": {"data_parallel": 4},
    "DP-8-b1": {"data_parallel": 8},
    "DP-4-b32": {"data_parallel": 4, "batch_size": 32},
    "ci-b1-DP-4": {
        "max_seq_len": 4096, "max_generated_tokens": 2048, "stop_at_eos": False,
        "data_parallel": 4, "ci_only": True,
    },
    "ci-b1-DP-8": {
        "max_seq_len": 4096, "max_generated_tokens": 2048, "stop_at_eos": False,
        "data_parallel": 8, "ci_only": True,
    },
    "ci-b1-DP-16": {"data_parallel": 16, "ci_only": True},
    "ci-b1-DP-32": {"data_parallel": 32, "ci_only": True},
    "ci-stress-1": {
        "max_seq_len": 131072, "max_generated_tokens": 20000, "page_params": LONG_PAGES,
        "stop_at_eos": False, "stress_test": True, "ci_only": True,
    },
    "ci-token-matching": {
        "max_generated_tokens": 500, "instruct": False, "token_accuracy": True,
        "enable_trace": False, "ci_only": True,
    },
    "ci-eval-1": {
        "input_prompts": EVAL_1, "repeat_batches": 6, "compare_repeats": True, "ci_only": True,
    },
    "ci-eval-32": {
        "input_prompts": EVAL_32, "repeat_batches": 3, "batch_size": 32, "compare_repeats": True,
        "ci_only": True,
    },
    "ci-long-context-16k": _long(16, max_seq_len=32768, ci_only=True),
    "device-perf": {
        "max_generated_tokens": 2, "num_layers": 10, "mode": "prefill", "ci_only": True,
    },
}  # fmt: skip

SIMPLE_CASES = [Case(id=name, **fields) for name, fields in _SIMPLE.items()]


# --- simple_vision_demo.py: images in, text out


@dataclass(frozen=True, kw_only=True)
class VisionCase(Case):
    """Users who ask about images, and some who do not."""

    input_prompts: str = "vision_questions"
    max_seq_len: int = 1024
    images: int = 1


_VISION: dict[str, dict[str, Any]] = {
    "batch1-notrace": {"enable_trace": False},
    "batch1-trace": {},
    "batch32-trace": {"batch_size": 32},
    "batch4-trace-with-text-prompts": {
        "batch_size": 4, "input_prompts": "vision_questions_and_text",
    },
}  # fmt: skip

VISION_CASES = [VisionCase(id=name, **fields) for name, fields in _VISION.items()]


# --- text_demo.py: Llama 3.3 70B on Galaxy


@dataclass(frozen=True, kw_only=True)
class GalaxyCase(Case):
    """A run on a whole Galaxy; contexts of 128K, pages shared by all users."""

    max_seq_len: int = 131072
    max_generated_tokens: int = 128
    page_params: PageParams = LONG_PAGES
    stop_at_eos: bool = False
    apc_test: bool = False
    prefill_profile: bool = False
    default_device: str = "TG"


_SWEEP = tuple(f"input_data_long_{n}k" for n in (1, 2, 4, 8, 16, 32, 64, 128))
_GALAXY: dict[str, dict[str, Any]] = {
    "batch-1": {"sampling_params": SamplingParams(top_p=0.05)},
    "batch-32": {"batch_size": 32},
    "batch-32-non-uniform-sampling": {
        "batch_size": 32,
        "sampling_params": spread(32, penalty=(-2.0, 2.0), repetition=(0.8, 1.5)),
    },
    "batch-32-log-probs": {"batch_size": 32, "log_probs": True},
    "long-1k-b1": _long(1),
    "long-4k-b1": _long(4),
    "long-8k-b1": _long(8, sampling_params=SamplingParams(temperature=1.0, top_p=0.04)),
    "long-16k-b1": _long(16),
    # 32 users of 16K tokens share 512K positions: more pages than one user of 128K needs
    "long-16k-b32": _long(16, batch_size=32, page_params=PageParams(64, 32 * 260)),
    "long-32k-b1": _long(32),
    "long-64k-b1": _long(64),
    "long-128k-b1": _long(128),
    "evals-1": {
        "input_prompts": EVAL_1, "repeat_batches": 16, "max_generated_tokens": 1024,
        "compare_repeats": True,
    },
    "evals-32": {
        "input_prompts": EVAL_32, "repeat_batches": 16, "batch_size": 32,
        "max_generated_tokens": 1024, "compare_repeats": True,
    },
    "evals-long-prompts": {
        "input_prompts": "input_data_long_4k", "repeat_batches": 6, "max_generated_tokens": 1024,
        "compare_repeats": True,
    },
    "repeat2": {"repeat_batches": 2, "rotate_prompts": False, "compare_repeats": True},
    "prefill-profile": _long(4, max_generated_tokens=10, num_layers=1, prefill_profile=True),
    "prefill-profile-prefix-caching": _long(
        4, max_generated_tokens=10, num_layers=1, prefill_profile=True, prefix_cached_ratio=0.5,
        share_prefixes=True,
    ),
    "batch-1-prefix-caching-perf": _long(4, prefix_cached_ratio=0.75, share_prefixes=True),
    "batch-1-prefix-caching-pcc": _long(
        1, max_generated_tokens=20, prefix_cached_ratio=0.5, share_prefixes=True, pcc_check=True,
    ),
    "apc-test": {
        "batch_size": 32, "max_generated_tokens": 130, "apc_test": True, "pcc_check": True,
    },
    "pcc-80L": {
        "batch_size": 32, "max_generated_tokens": 20, "max_seq_len": 1024, "pcc_check": True,
    },
    "ci-token-matching": {
        "max_seq_len": 1024, "max_generated_tokens": 500, "instruct": False,
        "token_accuracy": True, "enable_trace": False,
    },
    "seqlen-sweep": {"max_generated_tokens": 32, "sweep": _SWEEP},
}  # fmt: skip

GALAXY_CASES = [GalaxyCase(id=name, **fields) for name, fields in _GALAXY.items()]


# --- demo_decode.py: prefill by decode, for work on the decode side


@dataclass(frozen=True, kw_only=True)
class DecodeCase(Case):
    """A decode-only run: prompts go through token by token."""

    max_seq_len: int = 131072
    batch_size: int = 32
    max_generated_tokens: int = 2000
    page_params: PageParams = PageParams(64, 4096)
    stop_at_eos: bool = False
    start_pos: int = 0
    default_device: str = "TG"


_DECODE: dict[str, dict[str, Any]] = {
    "full": {
        "sampling_params": SamplingParams(temperature=0.7, top_k=32, top_p=0.9, seed=42),
    },
    "quick": {"num_layers": 1, "weights": "random"},
    "stress-test": {"max_generated_tokens": 500_000, "stress_test": True},
    "mini-stress-test": {"max_generated_tokens": 2048, "stress_test": True},
    "measure-device-perf": {"num_layers": 10, "max_generated_tokens": 1, "start_pos": 127},
    "nd-hang-test": {"max_generated_tokens": 20_000, "stress_test": True},
}

DECODE_CASES = [DecodeCase(id=name, **fields) for name, fields in _DECODE.items()]

# Tokens/s/user that Llama 3.3 70B must reach on a Galaxy and must not exceed (then the band is
# out of date), by Galaxy generation and number of layers.
TSU_MODEL = "Llama-3.3-70B"
TSU_BANDS: dict[str, dict[int, tuple[float, float]]] = {
    "4U": {1: (390, 448), 10: (230, 253), 80: (52, 56)},
    "6U": {1: (480, 550), 10: (230, 250), 80: (68, 73)},
}
TSU_MAX_OUTSIDE = 0.10  # share of iterations that may lie outside the band
TSU_ITERATIONS = range(1, 200)
