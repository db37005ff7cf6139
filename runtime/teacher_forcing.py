"""Token accuracy: what the model would say at each position of a known text.

Half of a recorded text is the prompt; then every step takes the text's own next token, and the
token the model would have chosen is compared with HF's best one (top-1) and five best (top-5).
Forcing skips sampling and can pass on a model that writes garbage, so beside it the model writes
alone and HF judges the text. tests/references/generate_reference_hf.py records the references.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime.generator import Generator, Request
from runtime.paging import BlockPool

REFERENCES = Path(__file__).resolve().parent.parent / "tests" / "references"
GENERATE = "python -m tests.references.generate_reference_hf --model <checkpoint>"
ALONE_TOKENS = 64  # written alone
ALONE_MARGIN = 1.0  # nats per token that such a text may be less likely than HF's own
ALONE_WORST_RANK = 100  # every token must be among HF's likeliest so many


@dataclass(frozen=True)
class Reference:
    """What HF's float32 model says about a text; row i of `top5` judges token split + i."""

    model: str
    weights: str  # weights_digest of the checkpoint
    text: str  # where the tokens are from
    split: int  # tokens of the prompt
    tokens: list[int]
    top5: list[list[int]]  # likeliest first
    hf_bfloat16: dict[str, float]  # top1, top5: what HF itself reaches in bfloat16
    greedy: list[int]  # what HF writes alone after the prompt
    greedy_log_likelihood: float  # mean per token
    made_with: dict[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> list[int]:
        return self.tokens[: self.split]

    @property
    def forced(self) -> list[int]:
        return self.tokens[self.split :]


def reference_path(model: str, folder: Path = REFERENCES) -> Path:
    """Where a model's reference is kept."""
    return folder / f"{model}.json"


def save_reference(reference: Reference, path: Path) -> None:
    """Write as JSON, one line per field, so that a change shows in a diff."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(reference).items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def load_reference(
    model: str, *, weights: str | None = None, folder: Path = REFERENCES
) -> Reference:
    """A model's recorded reference; with `weights` (a digest), refused if others made it."""
    path = reference_path(model, folder)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise ValueError(
            f"no token reference for {model} (there are: {known}): record one with {GENERATE}"
        )
    try:
        found = Reference(**json.loads(path.read_text(encoding="utf-8")))
        if not 0 < found.split < len(found.tokens) or len(found.top5) != len(found.forced):
            raise ValueError(f"{len(found.tokens)} tokens do not fit {len(found.top5)} rows")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"cannot read the token reference {path}: {error}: record it again with {GENERATE}"
        ) from None
    if weights not in (None, found.weights):
        raise ValueError(
            f"the token reference {path.name} was made from other weights of {model} (digest "
            f"{found.weights}, here {weights}): record it again with {GENERATE}"
        )
    return found


def weights_digest(checkpoint: Any) -> str:
    """Tells one set of weights from another by the values of two small tensors.

    Unlike `checkpoint.fingerprint` it is the same on every machine and for every file format.
    """
    digest = hashlib.sha256(checkpoint.config.digest.encode())
    last = checkpoint.config.num_layers - 1
    for name in ("norm.weight", f"layers.{last}.attention.wk.weight"):
        digest.update(checkpoint.get(name).float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Accuracy:
    """Shares in percent over `steps` tokens."""

    top1: float
    top5: float
    steps: int
    chosen: tuple[int, ...] = field(repr=False, default=())


def score(chosen: Sequence[int], top5: Sequence[Sequence[int]]) -> Accuracy:
    """Shares of chosen tokens that are the reference's best, and among its five best."""
    rows = list(zip(chosen, top5, strict=True))
    best = sum(token == row[0] for token, row in rows)
    near = sum(token in row for token, row in rows)
    return Accuracy(100 * best / len(rows), 100 * near / len(rows), len(rows), tuple(chosen))


def run_forced(
    engine: Any,
    reference: Reference,
    *,
    max_steps: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Accuracy:
    """Teacher-forced accuracy of slot 0 through prefill and decode steps; other slots are idle."""
    prompt, forced = reference.prompt, reference.forced[:max_steps]
    needed = len(prompt) + len(forced) - 1  # the last choice is judged, not written
    if needed > engine.max_seq_len:
        raise ValueError(
            f"token accuracy needs {needed} positions, max_seq_len is {engine.max_seq_len}: "
            "raise --max_seq_len or lower --max_generated_tokens"
        )
    pages = _one_user_pages(engine, needed)
    chosen = [int(engine.prefill([prompt], slots=[0], page_table=pages)[0].argmax())]
    tokens = torch.zeros(engine.max_batch_size, dtype=torch.int32)
    positions = torch.full((engine.max_batch_size,), -1, dtype=torch.int32)
    for step, token in enumerate(forced[:-1]):
        tokens[0], positions[0] = token, len(prompt) + step
        chosen.append(int(engine.decode(tokens, positions, page_table=pages)[0].argmax()))
        if on_step is not None:
            on_step(step)
    return score(chosen, reference.top5[: len(chosen)])


def _one_user_pages(engine: Any, length: int) -> torch.Tensor | None:
    """A page table with blocks for slot 0 alone, in random order so that a wrong table shows."""
    if engine.block_size is None:
        return None
    pool = BlockPool(engine.num_blocks, engine.block_size, seed=0)
    pool.allocate(0, range(length), limit=length)
    width = -(-engine.max_seq_len // engine.block_size)
    table = torch.full((engine.max_batch_size, width), -1, dtype=torch.int32)
    table[0] = torch.tensor(pool.table(0, width), dtype=torch.int32)
    return table


def write_alone(
    engine: Any, reference: Reference, steps: int = ALONE_TOKENS, *, sample_on_device: bool = True
) -> list[int]:
    """Greedy continuation of the reference's prompt, sampled and fed back as in a demo."""
    generator = Generator([engine], sample_on_device=sample_on_device)
    request = Request(reference.prompt, steps)
    return [step.tokens[0] for step in generator.generate([request])]


@dataclass(frozen=True)
class Alone:
    """How a text that the model wrote alone looks to HF."""

    log_likelihood: float  # mean per token, natural logarithm
    expected: float  # the same of HF's own greedy text
    worst_rank: int  # 1: every token was HF's likeliest
    same_as_hf: int  # leading tokens equal to HF's greedy text
    steps: int

    @property
    def sensible(self) -> bool:
        likely = self.log_likelihood >= self.expected - ALONE_MARGIN
        return likely and self.worst_rank <= ALONE_WORST_RANK

    def __str__(self) -> str:
        return (
            f"{'sensible' if self.sensible else 'GARBAGE'}: log-likelihood "
            f"{self.log_likelihood:.3f} per token under HF (HF's own text {self.expected:.3f}), "
            f"worst rank {self.worst_rank}, the first {self.same_as_hf} of {self.steps} tokens "
            "equal HF's"
        )


def judge_alone(reference: Reference, written: Sequence[int], judge: Any) -> Alone:
    """Judge tokens written after the reference's prompt by an HF model."""
    log_likelihood, worst_rank = log_likelihood_and_rank(judge, reference.prompt, written)
    same = 0
    while same < min(len(written), len(reference.greedy)):
        if written[same] != reference.greedy[same]:
            break
        same += 1
    expected = reference.greedy_log_likelihood
    return Alone(log_likelihood, expected, worst_rank, same, len(written))


def hf_judge(checkpoint: Any) -> Any | None:
    """The HF model in float32 with the checkpoint's weights; None where memory is too small."""
    config = checkpoint.config
    parameters = 2 * config.vocab_size * config.dim
    parameters += config.num_layers * config.dim * (2 * config.dim + 3 * config.hidden_dim)
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 5 * parameters > available:  # 4 bytes each, and room for logits
        return None
    from models.checkpoints.reference import build_reference

    return build_reference(checkpoint)


@torch.inference_mode()
def log_likelihood_and_rank(
    judge: Any, prompt: Sequence[int], written: Sequence[int]
) -> tuple[float, int]:
    """Mean natural-log likelihood of tokens after a prompt, and the worst rank among them."""
    ids = torch.tensor([[*prompt, *written]])
    logits = judge(ids, use_cache=False, logits_to_keep=len(written) + 1).logits[0, :-1].float()
    chosen = logits.gather(1, torch.tensor(list(written)).unsqueeze(1))
    ranks = (logits > chosen).sum(dim=-1) + 1
    mean = (chosen.squeeze(1) - logits.logsumexp(dim=-1)).mean()
    return float(mean), int(ranks.max())
