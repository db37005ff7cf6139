"""Records what Hugging Face says about a text, for the accuracy test of one model.

    python -m references.generate_reference_hf [--model default] [--tokens 1024]

Writes references/<model>.json: tokens (half prompt, half forced), HF float32's five likeliest
tokens after each, what HF reaches in bfloat16, and HF's own greedy text after the prompt.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from backends.command import run
from models.checkpoints.open import locate, open_checkpoint
from models.checkpoints.reference import build_reference
from models.fields import read_text
from models.numbers import argument
from models.outputs import output_file
from runtime.teacher_forcing import (
    FREE_TOKENS,
    Reference,
    TokenAccuracy,
    log_likelihood_and_rank,
    reference_path,
    save_reference,
    weights_digest,
)
from runtime.tokenizer_files import load_tokenizer

TEXT = Path(__file__).parent / "tale_of_two_cities.txt"  # Dickens, 1859: in the public domain


@torch.inference_mode()
def logits_after(model: Any, tokens: list[int], split: int) -> torch.Tensor:
    """What the model says at each forced position, float32 [positions, vocabulary]."""
    ids = torch.tensor([tokens[:-1]])
    keep = len(tokens) - split
    return model(ids, use_cache=False, logits_to_keep=keep).logits[0].float()


@torch.inference_mode()
def greedy_after(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """What the model writes alone; end tokens do not stop it."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def make_reference(checkpoint: Any, tokens: list[int], text: str) -> Reference:
    """Run HF in float32 and in bfloat16 over the tokens."""
    split = len(tokens) // 2
    rounded = build_reference(checkpoint, dtype=torch.bfloat16)
    rounded_logits = logits_after(rounded, tokens, split)
    del rounded
    model = build_reference(checkpoint)
    logits = logits_after(model, tokens, split)
    best = logits.topk(5, dim=-1)
    top5, expected = best.indices.tolist(), best.indices[:, :1]
    margins = (best.values[:, 0] - best.values[:, 1]).tolist()
    log_probs, rounded_log_probs = (
        values.log_softmax(dim=-1).gather(1, expected).squeeze(1).tolist()
        for values in (logits, rounded_logits)
    )
    greedy = greedy_after(model, tokens[:split], FREE_TOKENS)
    in_bfloat16 = TokenAccuracy.of(rounded_logits.argmax(dim=-1).tolist(), top5, rounded_log_probs)
    return Reference(
        model=checkpoint.config.name,
        weights=weights_digest(checkpoint),
        text=text,
        prompt_len=split,
        tokens=tokens,
        top5=top5,
        margins=[round(margin, 4) for margin in margins],
        log_probs=[round(value, 5) for value in log_probs],
        hf_bfloat16={
            "top1": in_bfloat16.top1,
            "top5": in_bfloat16.top5,
            "distance": round(in_bfloat16.distance(log_probs), 5),
        },
        greedy=greedy,
        greedy_log_likelihood=log_likelihood_and_rank(model, tokens[:split], greedy)[0],
        made_with={name: version(name) for name in ("torch", "transformers")},
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Record a token accuracy reference.")
    parser.add_argument("--model", default="default", help="directory, .gguf, hub name or default")
    parser.add_argument("--text", type=Path, default=TEXT, help="a plain text file")
    parser.add_argument(
        "--tokens", type=argument("tokens"), default=1024, help="half prompt, half forced"
    )
    parser.add_argument("--out", type=output_file(), help="default: references/<model>.json")
    given = parser.parse_args(arguments)
    checkpoint = open_checkpoint(given.model)
    tokenizer = load_tokenizer(locate(given.model).path)
    tokens = tokenizer.encode(read_text(given.text))
    if len(tokens) < given.tokens:
        raise ValueError(
            f"{given.text} has {len(tokens)} tokens, {given.tokens} are asked for: "
            "give a longer text or fewer --tokens"
        )
    reference = make_reference(checkpoint, tokens[: given.tokens], given.text.name)
    path = given.out or reference_path(reference.model)
    save_reference(reference, path)
    print(f"{path}: {len(reference.forced)} forced tokens; HF bfloat16 {reference.hf_bfloat16}")
    return 0


if __name__ == "__main__":
    run(main, "references.generate_reference_hf")
