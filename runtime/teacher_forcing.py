"""Token accuracy: what the model would say at each position of a known text.

Half of a recorded text is the prompt; then every step takes the text's own next token, and the
token the model would have chosen is compared with the reference model's best one (top-1) and five
best (top-5). Forcing cannot notice a broken loop of sampling and feeding back, so beside it the
model writes alone, and the reference model says how likely that text is.
Recorded by tests/references/generate_reference_hf.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

REFERENCES = Path(__file__).resolve().parents[1] / "tests" / "references"


@dataclass(frozen=True)
class Reference:
    """A text's tokens and the reference model's five best next tokens of its second half."""

    model: str
    fingerprint: str  # of the checkpoint that judged
    tokens: torch.Tensor  # int32 [T]
    top5: torch.Tensor  # int32 [T - split, 5], best first; row 0 judges the first forced token
    split: int  # tokens of the prompt

    @property
    def prompt(self) -> list[int]:
        return self.tokens[: self.split].tolist()

    @property
    def forced(self) -> list[int]:
        return self.tokens[self.split :].tolist()


@dataclass(frozen=True)
class Accuracy:
    """Shares in percent over `steps` tokens."""

    top1: float
    top5: float
    steps: int


def reference_path(model: str) -> Path:
    """Where a model's reference is kept."""
    return REFERENCES / f"{model}.safetensors"


def save_reference(reference: Reference, path: Path) -> None:
    """Write plain tensors and text, no code."""
    facts = {"model": reference.model, "fingerprint": reference.fingerprint}
    save_file(
        {"tokens": reference.tokens, "top5": reference.top5},
        str(path),
        metadata={"reference": json.dumps({**facts, "split": reference.split})},
    )


def load_reference(model: str, fingerprint: str | None = None) -> Reference:
    """The recorded reference of a model; made by another checkpoint it is refused."""
    path = reference_path(model)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in REFERENCES.glob("*.safetensors"))) or "none"
        raise ValueError(
            f"no token reference for {model} (there are: {known}): record one with "
            f"python -m tests.references.generate_reference_hf --model {model}"
        )
    with safe_open(str(path), framework="pt") as file:
        facts = json.loads(file.metadata()["reference"])
        reference = Reference(
            facts["model"],
            facts["fingerprint"],
            file.get_tensor("tokens"),
            file.get_tensor("top5"),
            facts["split"],
        )
    if fingerprint is not None and fingerprint != reference.fingerprint:
        raise ValueError(
            f"the reference {path.name} was made from other weights of {model}: record it again "
            "with python -m tests.references.generate_reference_hf"
        )
    return reference


def run_forced(
    engine: Any,
    reference: Reference,
    *,
    max_steps: int | None = None,
    page_table: torch.Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Accuracy:
    """Teacher-forced accuracy of slot 0; other slots stay idle."""
    forced = reference.forced[:max_steps]
    prompt = reference.prompt
    needed = len(prompt) + len(forced)
    if needed > engine.max_seq_len:
        raise ValueError(
            f"token accuracy needs {needed} positions, max_seq_len is {engine.max_seq_len}: "
            "raise --max_seq_len or lower --max_generated_tokens"
        )
    pages = _one_user_pages(engine, needed) if page_table is None else page_table
    chosen = [int(engine.prefill([prompt], slots=[0], page_table=pages)[0].argmax())]
    for step, token in enumerate(tqdm(forced[:-1], desc="teacher forcing", leave=False)):
        logits = _step(engine, token, len(prompt) + step, pages)
        chosen.append(int(logits.argmax()))
        if on_step is not None:
            on_step(step)
    return score(chosen, reference.top5[: len(chosen)])


def score(chosen: Sequence[int], top5: torch.Tensor) -> Accuracy:
    """Shares of chosen tokens that are the reference's best, and among its five best."""
    mine = torch.tensor(list(chosen), dtype=top5.dtype)
    top1 = (mine == top5[:, 0]).double().mean().item()
    among = (mine[:, None] == top5).any(-1).double().mean().item()
    return Accuracy(100 * top1, 100 * among, len(mine))


def write_alone(engine: Any, reference: Reference, steps: int) -> list[int]:
    """Greedy continuation of the reference's prompt, the model feeding on its own tokens."""
    prompt = reference.prompt
    pages = _one_user_pages(engine, len(prompt) + steps)
    tokens = [int(engine.prefill([prompt], slots=[0], page_table=pages)[0].argmax())]
    for step in range(steps - 1):
        logits = _step(engine, tokens[-1], len(prompt) + step, pages)
        tokens.append(int(logits.argmax()))
    return tokens


def mean_log_likelihood(judge: Any, prompt: Sequence[int], tokens: Iterable[int]) -> float:
    """Mean natural-log likelihood per token of `tokens` after `prompt` under an HF model."""
    text = list(tokens)
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *text]])
        logits = judge(ids, use_cache=False, logits_to_keep=len(text) + 1).logits[0, :-1].float()
    return logits.log_softmax(-1)[torch.arange(len(text)), torch.tensor(text)].mean().item()


def _step(engine: Any, token: int, position: int, pages: torch.Tensor | None) -> torch.Tensor:
    batch = engine.max_batch_size
    tokens = torch.zeros(batch, dtype=torch.int32)
    positions = torch.full((batch,), -1, dtype=torch.int32)
    tokens[0], positions[0] = token, position
    return engine.decode(tokens, positions, page_table=pages)[0]


def _one_user_pages(engine: Any, tokens: int) -> torch.Tensor | None:
    """A page table with blocks for slot 0 alone, in random order so that a wrong table shows."""
    if engine.block_size is None:
        return None
    blocks = -(-tokens // engine.block_size)
    if blocks > engine.num_blocks:
        raise ValueError(
            f"the page budget is too small: {tokens} tokens need {blocks} blocks of "
            f"{engine.block_size}, page_params give {engine.num_blocks}"
        )
    order = torch.randperm(engine.num_blocks, generator=torch.Generator().manual_seed(0))
    table = torch.full((engine.max_batch_size, blocks), -1, dtype=torch.int32)
    table[0] = order[:blocks]
    return table
