"""Token accuracy: what the model would say at each position of a known text.

Half of a recorded text is the prompt; then every step takes the text's own next token, and the
token the model would have chosen is compared with HF's best one (top-1) and five best (top-5).
Forcing skips sampling and can pass on a model that writes garbage, so beside it the model writes
alone and HF judges the text. references/generate_reference_hf.py records the references.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import backends
from runtime.generator import Generator
from runtime.requests import Request

REFERENCES = Path(__file__).resolve().parent.parent / "references"
GENERATE = "python -m references.generate_reference_hf --model <checkpoint>"
FREE_TOKENS = 64  # written alone
FREE_MARGIN = 1.0  # nats per token that such a text may be less likely than HF's own
FREE_WORST_RANK = 100  # every token must be among HF's 100 likeliest


@dataclass(frozen=True)
class Reference:
    """What HF's float32 model says about a text; row i of `top5` judges token prompt_len + i."""

    model: str
    weights: str  # weights_digest of the checkpoint
    text: str  # where the tokens are from
    prompt_len: int
    tokens: list[int]
    top5: list[list[int]]  # likeliest first
    margins: list[float]  # logits between HF's best two tokens: small where rounding may choose
    log_probs: list[float]  # of HF's best token at each position, natural
    hf_bfloat16: dict[str, float]  # top1, top5, distance: what HF itself reaches in bfloat16
    greedy: list[int]  # what HF writes alone after the prompt
    greedy_log_likelihood: float  # mean per token
    made_with: dict[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> list[int]:
        return self.tokens[: self.prompt_len]

    @property
    def forced(self) -> list[int]:
        return self.tokens[self.prompt_len :]


def reference_path(model: str, folder: Path = REFERENCES) -> Path:
    """Where a model's reference is kept."""
    return folder / f"{model}.json"


def save_reference(reference: Reference, path: Path) -> None:
    """Write as JSON, one line per field, so that a change shows in a diff."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(reference).items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def find_reference(checkpoint: Any, folder: Path = REFERENCES) -> Reference:
    """The reference of a checkpoint's model, refused if it was recorded with other weights."""
    model = checkpoint.config.name
    path = reference_path(model, folder)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise ValueError(
            f"no token reference for {model} (there are: {known}): record one with {GENERATE}"
        )
    try:
        found = Reference(**json.loads(path.read_text(encoding="utf-8")))
        if not 0 < found.prompt_len < len(found.tokens) or {
            len(found.top5),
            len(found.margins),
        } != {len(found.forced)}:
            raise ValueError(f"{len(found.tokens)} tokens do not fit {len(found.top5)} rows")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"cannot read the token reference {path}: {error}: record it again with {GENERATE}"
        ) from None
    weights = weights_digest(checkpoint)
    if weights != found.weights:
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
class TokenAccuracy:
    """Shares in percent of tokens that are HF's likeliest, and among its likeliest five."""

    top1: float
    top5: float
    num_tokens: int
    chosen: list[int] = field(repr=False, default_factory=list)
    log_probs: list[float] = field(repr=False, default_factory=list)  # of HF's best tokens

    @classmethod
    def of(
        cls,
        chosen: Sequence[int],
        top5: Sequence[Sequence[int]],
        log_probs: Sequence[float] = (),
    ) -> TokenAccuracy:
        """Judge as many tokens as were chosen."""
        rows = list(zip(chosen, top5, strict=False))
        best = sum(token == row[0] for token, row in rows)
        near = sum(token in row for token, row in rows)
        shares = 100 * best / len(rows), 100 * near / len(rows)
        return cls(*shares, len(rows), list(chosen), list(log_probs))

    def distance(self, log_probs: Sequence[float]) -> float:
        """Root mean square difference of log-probabilities from HF's, in nats."""
        pairs = list(zip(self.log_probs, log_probs, strict=False))
        return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / len(pairs))


def force(
    engine: Any,
    reference: Reference,
    *,
    num_tokens: int | None = None,
    users: int = 1,
    on_token: Callable[[int], None] | None = None,
) -> list[TokenAccuracy]:
    """Accuracy of each of `users` equal users, who sit in different slots and pages.

    Prefill of the prompt half, then decode steps whose input is the text's own token.
    `on_token` is called with the number of tokens chosen so far. On the emulator the same settings
    give the same figures to the digit on one kind of processor.
    """
    with backends.repeatable():
        return _force(engine, reference, num_tokens, users, on_token)


def _force(
    engine: Any,
    reference: Reference,
    num_tokens: int | None,
    users: int,
    on_token: Callable[[int], None] | None,
) -> list[TokenAccuracy]:
    prompt, forced = reference.prompt, reference.forced[:num_tokens]
    needed = len(prompt) + len(forced) - 1  # the last choice is judged, not written
    if needed > engine.max_seq_len:
        raise ValueError(
            f"token accuracy needs {needed} positions, max_seq_len is {engine.max_seq_len}: "
            "raise --max_seq_len or lower --max_generated_tokens"
        )
    likely: dict[int, list[float]] = {}  # by handle: of HF's best token, where ours was chosen

    def note(handles: list[int], logits: torch.Tensor) -> None:
        step = len(likely.get(handles[0], ()))
        row = _log_probs(logits, reference.top5[step][0]).tolist()
        for handle, value in zip(handles, row, strict=True):
            likely.setdefault(handle, []).append(value)

    generator = Generator([engine], on_logits=note)
    request = Request(prompt, len(forced), forced=forced)
    chosen: dict[int, list[int]] = {generator.add(request): [] for _ in range(users)}
    while (step := generator.step()) is not None:
        for handle, token in step.tokens.items():
            chosen[handle].append(token)
        if on_token is not None:
            on_token(len(chosen[step.users[0]]))
    generator.reset()
    return [TokenAccuracy.of(row, reference.top5, likely[user]) for user, row in chosen.items()]


def _log_probs(logits: torch.Tensor, token: int) -> torch.Tensor:
    """Of one token, for each user."""
    return logits.float().log_softmax(dim=-1)[:, token]


@dataclass(frozen=True)
class FreeRun:
    """How a text that the model wrote alone looks to HF."""

    log_likelihood: float  # mean per token, natural logarithm
    expected: float  # the same of HF's own greedy text
    worst_rank: int  # 1: every token was HF's likeliest
    same_as_hf: int  # leading tokens equal to HF's greedy text
    num_tokens: int
    loop: int = 0  # tokens that the end repeats, 0 where it does not

    @property
    def passed(self) -> bool:
        likely = self.log_likelihood >= self.expected - FREE_MARGIN
        return likely and self.worst_rank <= FREE_WORST_RANK

    def __str__(self) -> str:
        verdict = "sensible" if self.passed else "GARBAGE"
        if self.passed and self.loop:
            verdict = f"likely, but it ends by repeating {self.loop} tokens again and again"
        return (
            f"{verdict}: {self.num_tokens} tokens, log-likelihood "
            f"{self.log_likelihood:.3f} per token under HF (HF's own text {self.expected:.3f}), "
            f"worst rank {self.worst_rank}, the first {self.same_as_hf} equal HF's"
        )


def judge_free_run(reference: Reference, written: Sequence[int], judge: Any) -> FreeRun:
    """Judge tokens written after the reference's prompt by an HF model."""
    log_likelihood, worst_rank = log_likelihood_and_rank(judge, reference.prompt, written)
    same = 0
    while same < min(len(written), len(reference.greedy)):
        if written[same] != reference.greedy[same]:
            break
        same += 1
    expected = reference.greedy_log_likelihood
    return FreeRun(log_likelihood, expected, worst_rank, same, len(written), loop_length(written))


def loop_length(tokens: Sequence[int]) -> int:
    """Tokens that a text's end says three times or more over its last quarter; 0: it does not."""
    for length in range(1, len(tokens) // 3 + 1):
        size = max(3 * length, len(tokens) // 4)
        end = list(tokens[-size:])
        if end[length:] == end[:-length]:
            return length
    return 0


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
