"""Records a model's token reference with HF transformers in float32.

`python -m tests.references.generate_reference_hf [--model default] [--tokens 1024]` reads the
public-domain opening of A Tale of Two Cities beside this file, takes its first tokens, and writes
<model>.safetensors: the tokens, the five best next tokens of the second half, and the checkpoint's
fingerprint. It also prints how often HF in bfloat16 agrees, the bar that bfloat16 can reach.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from models.checkpoints.open import locate, open_checkpoint
from models.checkpoints.reference import build_reference
from runtime.teacher_forcing import Reference, reference_path, save_reference, score
from runtime.tokenizer import load_tokenizer

TEXT = Path(__file__).parent / "tale_of_two_cities.txt"


def second_half(model: torch.nn.Module, tokens: torch.Tensor, split: int) -> torch.Tensor:
    """Logits that judge tokens split.. of the text, float32 [T - split, V]."""
    with torch.inference_mode():
        out = model(tokens[None].long(), use_cache=False, logits_to_keep=len(tokens) - split + 1)
    return out.logits[0, :-1].float()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.references.generate_reference_hf", description=__doc__
    )
    parser.add_argument("--model", default="default", help="default, a directory or a hub name")
    parser.add_argument("--tokens", type=int, default=1024, help="half prompt, half forced")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.model)
    ids = load_tokenizer(locate(args.model).path).encode(TEXT.read_text(encoding="utf-8"))
    if len(ids) < args.tokens:
        raise SystemExit(f"{TEXT.name} has {len(ids)} tokens, --tokens {args.tokens} is too many")
    tokens = torch.tensor(ids[: args.tokens], dtype=torch.int32)
    split = args.tokens // 2
    top5 = second_half(build_reference(checkpoint), tokens, split).topk(5, dim=-1).indices.int()
    name = checkpoint.config.name
    reference = Reference(name, checkpoint.fingerprint, tokens, top5.contiguous(), split)
    save_reference(reference, reference_path(name))
    rounded = second_half(build_reference(checkpoint, dtype=torch.bfloat16), tokens, split)
    agreed = score(rounded.argmax(-1).tolist(), top5)
    print(f"{reference_path(name).name}: {len(tokens)} tokens, split at {split}")
    print(f"HF in bfloat16: Top-1: {agreed.top1:.2f}% | Top-5: {agreed.top5:.2f}%")


if __name__ == "__main__":
    main()
