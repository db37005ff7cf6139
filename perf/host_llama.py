"""The emulator beside llama.cpp on this machine: one user and many, short and long, in turns.

Both read one GGUF file, the default model's (Q4_1) or that of HF_MODEL, llama.cpp through
llama-cpp-python, which is nobody's requirement:
`pip install --no-deps --target DIR llama-cpp-python==0.3.36 diskcache`, DIR on PYTHONPATH. On some
processors its own AMX code ends it by an illegal instruction: there it is asked for its plain
weights (`llama_extra_buffers` false).
Ratios are its time / ours. Times are host wall clock; host_speed.py says what they are not.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import backends
from backends import op_record
from models.checkpoints.open import locate
from perf.host_engine import Ours, clock, our_engine, random_prompts
from runtime.settings import Settings

CASES = {  # users, tokens of each prompt, rounds in turns
    "b1": (1, 128, 3),
    "b1_2048": (1, 2048, 2),
    "b1_8000": (1, 8000, 1),
    "b32": (32, 128, 1),
}
WARM_UPS = 4  # prefills of each: ours are walked in C from the fifth on
MISSING = (
    "llama_cpp is not installed: pip install --no-deps --target DIR llama-cpp-python==0.3.36 "
    "diskcache, then run with PYTHONPATH=DIR"
)


@functools.cache
def _quiet(cpp: Any) -> Any:
    """What hears of llama.cpp's doings and says nothing; it has to live as long as they go on."""
    return cpp.llama_log_callback(lambda level, text, data: None)


def gguf_file() -> Path:
    """The model's file; ValueError if it is not one that llama.cpp reads."""
    name = Settings.from_env().checkpoint or "default"
    path = locate(name).path
    if path.suffix != ".gguf":
        raise ValueError(f"{name} is no GGUF file: llama.cpp reads nothing else, so name one")
    return path


class Llama:
    """llama.cpp on one context for some users of one prompt length, greedy."""

    def __init__(self, prompts: torch.Tensor, steps: int, extra_buffers: bool) -> None:
        """`extra_buffers`: weights may be arranged for special instructions."""
        import llama_cpp as cpp

        self.cpp, self.steps, self.prompts = cpp, steps, prompts.tolist()
        cpp.llama_log_set(_quiet(cpp), None)
        users, self.length = prompts.shape
        threads, room = torch.get_num_threads(), users * (self.length + steps + 8)
        how = cpp.llama_model_default_params()
        how.use_extra_bufts = extra_buffers
        self.model = cpp.llama_model_load_from_file(str(gguf_file()).encode(), how)
        settings = cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = room, users
        settings.n_batch = min(room, 4096)
        settings.n_threads = settings.n_threads_batch = threads
        if hasattr(settings, "kv_unified"):
            settings.kv_unified = True  # else each user gets an equal share of the context
        self.context = cpp.llama_init_from_model(self.model, settings)
        self.vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self.model))
        self.most = int(settings.n_batch)
        self.batch = cpp.llama_batch_init(self.most, 0, users)

    def close(self) -> None:
        self.cpp.llama_batch_free(self.batch)
        self.cpp.llama_free(self.context)
        self.cpp.llama_model_free(self.model)

    def prefill(self) -> list[int]:
        """Every user's next token."""
        memory = self.cpp.llama_get_memory(self.context)
        self.cpp.llama_memory_clear(memory, True)
        tokens = [
            (user, at, token, at == self.length - 1)
            for user, prompt in enumerate(self.prompts)
            for at, token in enumerate(prompt)
        ]
        found: list[int] = []
        for first in range(0, len(tokens), self.most):
            found += self._run(tokens[first : first + self.most])
        return found

    def decode_after(self, tokens: list[int]) -> Iterator[float]:
        """Seconds of each step."""
        for step in range(self.steps + 2):
            start = time.perf_counter()
            tokens = self._run(
                [(user, self.length + step, token, True) for user, token in enumerate(tokens)]
            )
            if step >= 2:
                yield time.perf_counter() - start

    def _run(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Largest logits of those (user, position, token, wanted) whose logits are wanted."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (user, at, token, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, at
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, user
            batch.logits[i] = wanted
        if self.cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError(f"llama.cpp refused {len(tokens)} tokens")
        import numpy as np

        rows = [i for i, token in enumerate(tokens) if token[3]]
        logits = [self.cpp.llama_get_logits_ith(self.context, i) for i in rows]
        return [int(np.ctypeslib.as_array(x, (self.vocabulary,)).argmax()) for x in logits]


@contextmanager
def llama(prompts: torch.Tensor, steps: int, extra_buffers: bool) -> Iterator[Llama]:
    """An engine of llama.cpp, let go at the end."""
    made = Llama(prompts, steps, extra_buffers)
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class Pair:
    """Medians in seconds."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def take_turns(ours: Ours, theirs: Llama, rounds: int) -> tuple[Pair, Pair]:
    """Prefills and decode steps of both, in turns so that other work hits both."""
    prefills: tuple[list[float], list[float]] = ([], [])
    steps: tuple[list[float], list[float]] = ([], [])
    sides: tuple[Any, Any] = (ours, theirs)
    for _ in range(rounds):
        for side, one in enumerate(sides):
            start = time.perf_counter()
            token = one.prefill()
            prefills[side].append(time.perf_counter() - start)
            steps[side].append(statistics.median(one.decode_after(token)))
    return (
        Pair(*map(statistics.median, prefills)),
        Pair(*map(statistics.median, steps)),
    )


def compare(
    users: int, length: int, optimizations: str, steps: int, rounds: int, *, extra_buffers: bool
) -> dict[str, Any]:
    """Prefill and decode of some users after prompts of a length, and what a step reads."""
    room = -(-(length + steps + 8) // 1024) * 1024
    with our_engine(users, optimizations, max_seq_len=room, model=str(gguf_file())) as e:
        prompts = random_prompts(users, e.vocab_size, length)
        ours = Ours(e, prompts, steps)
        with op_record.record_ops() as records:
            token = ours.prefill()
        flops = sum(record.cost.flops for record in records if record.cost)
        with op_record.record_ops() as records:
            steps_taken = len(list(ours.decode_after(token)))  # compiles, captures, replays
        assert steps_taken == steps
        one, rest = divmod(len(records), steps + 2)  # replays report what they replay
        assert rest == 0, f"{len(records)} ops of {steps + 2} steps"
        read = sum(r.cost.dram_bytes - r.cost.cached_bytes for r in records[:one] if r.cost)
        with llama(prompts, steps, extra_buffers) as theirs:
            for _ in range(WARM_UPS):
                ours.prefill()
                theirs.prefill()
            prefill, decode = take_turns(ours, theirs, rounds)
    return {"prefill": prefill, "decode": decode, "flops": flops, "bytes": read}


def bandwidth() -> float:
    """Bytes per second that this process reads from memory larger than any cache."""
    values = torch.ones(1 << 27)
    return values.nbytes / min(clock(values.sum) for _ in range(5))


def peak_flops() -> float:
    """FLOP/s of the library's largest product of bfloat16."""
    x = torch.ones(1536, 1536, dtype=torch.bfloat16)
    return 2 * 1536**3 / min(clock(lambda: x @ x) for _ in range(5))


def alone(run: Callable[..., Any], *given: Any) -> Any:
    """What a process of its own finds."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(run, *given).result()


def peak_mib() -> float:
    """Of this process; getrusage's is at least that of the process which started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def our_start(optimizations: str, cache: str | None = None) -> tuple[float, float]:
    """Seconds until the model is loaded, and MiB at the peak of a short run, in a fresh process."""
    start = time.perf_counter()
    backends.select("emulator")
    with our_engine(1, optimizations, cache=cache, model=str(gguf_file())) as engine:
        loaded = time.perf_counter() - start
        list(Ours(engine, random_prompts(1, engine.vocab_size), 4).decode())
    return loaded, peak_mib()


def their_start(extra_buffers: bool) -> tuple[float, float]:
    """The same of llama.cpp; what this module's own imports take is in both, and stated apart."""
    start = time.perf_counter()
    with llama(random_prompts(1, 1000), 4, extra_buffers) as model:
        loaded = time.perf_counter() - start
        list(model.decode_after(model.prefill()))
    return loaded, peak_mib()


def survives(run: Callable[..., Any], *given: Any) -> bool:
    """Whether a process of its own lives to the end of this."""
    try:
        alone(run, *given)
    except BrokenProcessPool:
        return False
    return True


def nothing_but_imports() -> float:
    """MiB at the peak of a process that only imports."""
    return peak_mib()


def measure_llama(optimizations: str, steps: int, cases: Sequence[str]) -> dict[str, Any]:
    """All figures of some of CASES by name, or why there are none."""
    if importlib.util.find_spec("llama_cpp") is None:
        return {"skipped": MISSING}
    extra_buffers = survives(their_start, True)
    found: dict[str, Any] = {
        "llama_extra_buffers": extra_buffers,
        "llama_cpp_python": importlib.import_module("llama_cpp").__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "llama_file": gguf_file().name,
    }
    for name in cases:
        users, length, rounds = CASES[name]
        times = compare(users, length, optimizations, steps, rounds, extra_buffers=extra_buffers)
        for phase in ("prefill", "decode"):
            pair = times[phase]
            found[f"{phase}_{name}_ms"] = round(pair.ours * 1e3, 2)
            found[f"{phase}_{name}_llamacpp_ms"] = round(pair.theirs * 1e3, 2)
            found[f"{phase}_{name}_vs_llamacpp"] = round(pair.ratio, 3)
        if name == "b1":
            read = times["bytes"] / times["decode"].ours
            found["bytes_per_step"] = times["bytes"]
            found["bandwidth_gb_s"] = round(bandwidth() / 1e9, 1)
            found["bandwidth_share"] = round(read / bandwidth(), 3)
        if name == "b1_2048":
            found["peak_gflop_s"] = round(peak_flops() / 1e9, 1)
            found["prefill_flops_share"] = round(
                times["flops"] / times["prefill"].ours / peak_flops(), 3
            )
    with tempfile.TemporaryDirectory() as fresh:
        found["load_cold_s"] = round2(alone(our_start, optimizations, fresh)[0])
    found["load_warm_s"], found["peak_mib"] = map(round2, alone(our_start, optimizations))
    found["load_llamacpp_s"], found["peak_llamacpp_mib"] = map(
        round2, alone(their_start, extra_buffers)
    )
    found["peak_imports_mib"] = round2(alone(nothing_but_imports))
    return found


def round2(value: float) -> float:
    """To two digits after the point."""
    return round(value, 2)
