"""Compares a run with Hugging Face by correlation (PCC): logits of every step, layers of prefill.

The run itself is the demo's own, with its pages, batches and meshes; the reference is asked
afterwards for the very tokens that the run produced, so one different token spoils nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from loguru import logger

from demo.hooks import wrapped
from demo.session import Session
from runtime.requests import Request

PREFILL_LIMIT, DECODE_LIMIT = 0.90, 0.91  # what the reference implementation asks for
COMPARED_STEPS = 20


@dataclass
class Tap:
    """What flowed through an engine: every user's logits, and user 0's prefill layer by layer."""

    logits: list[list[torch.Tensor]]  # [user][step] -> [vocab]
    layers: list[torch.Tensor] = field(default_factory=list)  # [layer] -> [tokens, dim]


@dataclass(frozen=True)
class Agreement:
    """Lowest PCC over users, per layer and per step; step 0 is the prefill."""

    layers: list[float]
    steps: list[float]


def pcc(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson correlation of all elements."""
    stacked = torch.stack([a.double().flatten(), b.double().flatten()])
    return float(torch.corrcoef(stacked)[0, 1])


@contextlib.contextmanager
def tapped(session: Session, requests: Sequence[Request]) -> Iterator[Tap]:
    """Record what flows while the block runs these requests; user i sits in slot i."""
    if session.case.data_parallel > 1:
        raise ValueError("pcc_check looks at one model: use --data_parallel 1")
    tap = Tap([[] for _ in requests])

    def watch_prefill(prefill: Callable[..., Any]) -> Callable[..., Any]:
        def watched(tokens: Sequence[Sequence[int]], **arguments: Any) -> torch.Tensor:
            whole = not any(arguments["start_positions"])
            with tapped_layers(session, len(tokens[0])) as layers:
                logits = prefill(tokens, **arguments)
            for row, prompt, slot in zip(logits, tokens, arguments["slots"], strict=True):
                if list(prompt) == list(requests[slot].prompt):  # not one that fills the cache
                    tap.logits[slot].append(row.clone())
                    tap.layers = tap.layers or (layers if whole and slot == 0 else [])
            return logits

        return watched

    def watch_decode(decode: Callable[..., Any]) -> Callable[..., Any]:
        def watched(tokens: Any, positions: torch.Tensor, **arguments: Any) -> torch.Tensor:
            logits = decode(tokens, positions, **arguments)
            for slot, steps in enumerate(tap.logits):
                if positions[slot] >= 0 and len(steps) < COMPARED_STEPS:
                    steps.append(logits[slot].clone())
            return logits

        return watched

    engines = session.loaded.engines
    with wrapped(engines, "prefill", watch_prefill), wrapped(engines, "decode", watch_decode):
        yield tap


@contextlib.contextmanager
def tapped_layers(session: Session, num_tokens: int) -> Iterator[list[torch.Tensor]]:
    """Record the first prefill pass of every layer: rows of its first user's tokens."""
    model = session.loaded.engines[0].model
    outputs: list[torch.Tensor] = []

    def watch(prefill: Callable[..., Any]) -> Callable[..., Any]:
        first = True

        def watched(*arguments: Any, **named: Any) -> Any:
            nonlocal first
            out = prefill(*arguments, **named)
            if first:
                outputs.append(read_residual(out, model.sharding)[:num_tokens])
            first = False
            return out

        return watched

    with wrapped(model.layers, "prefill", watch):
        yield outputs


def read_residual(x_11SD: Any, sharding: Any) -> torch.Tensor:
    """Activations [tokens, dim] on the host, from all chips' shares."""
    from backends import ttnn

    parts = ttnn.get_device_tensors(x_11SD)[: sharding.cols]
    whole = torch.cat([ttnn.to_torch(part) for part in parts], dim=-1)
    return whole[0, 0, :, : sharding.config.dim].float()


def compare(
    session: Session, tap: Tap, requests: Sequence[Request], answers: Sequence[Sequence[int]]
) -> Agreement:
    """Ask Hugging Face for the same tokens in float32 and correlate."""
    reference = reference_of(session)
    num_steps = min(len(steps) for steps in tap.logits)
    steps, layers = [1.0] * num_steps, []
    for user, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        prompt = list(request.prompt)
        logits, outputs = ask_reference(reference, prompt + list(answer[: num_steps - 1]))
        for step in range(num_steps):
            found = pcc(tap.logits[user][step], logits[len(prompt) - 1 + step])
            steps[step] = min(steps[step], found)
        if user == 0 and tap.layers:
            layers = [
                pcc(ours, theirs[0, : len(ours)])
                for ours, theirs in zip(tap.layers, outputs, strict=True)
            ]
    return Agreement(layers, steps)


def ask_reference(reference: Any, tokens: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits [tokens, vocab] and every layer's output [1, tokens, dim] of the HF model."""
    outputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: outputs.append(first_tensor(out)))
        for layer in reference.model.layers
    ]
    with torch.inference_mode():
        logits = reference(torch.tensor([list(tokens)])).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, outputs


def require_same(first: Tap, second: Tap) -> None:
    """Fail unless two runs gave the same logits, bit for bit."""
    for user, (ours, theirs) in enumerate(zip(first.logits, second.logits, strict=True)):
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if not torch.equal(a, b):
                pytest.fail(
                    f"a second run differs: user {user}, step {step}, PCC {pcc(a, b):.9f}",
                    pytrace=False,
                )
    logger.info("A second run gave the same logits, bit for bit")


def reference_of(session: Session) -> Any:
    """The HF model with the same weights, cut to the layers that ran."""
    from models.checkpoints import RandomCheckpoint
    from models.checkpoints.open import open_checkpoint
    from models.checkpoints.reference import build_reference

    config, case = session.loaded.config, session.case
    if not case.num_layers:
        return build_reference(session.loaded.checkpoint)
    if case.weights == "random":
        return build_reference(RandomCheckpoint(config.with_layers(case.num_layers), 0))
    return build_reference(open_checkpoint(session.model.name, num_layers=case.num_layers))


def first_tensor(output: Any) -> torch.Tensor:
    """A layer's hidden states, whether it returns them alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def report_agreement(found: Agreement, *, strict: bool) -> None:
    """Print the table; `strict` fails below the limits."""
    lines = [f"layer {i:>3}  prefill PCC {value:.6f}" for i, value in enumerate(found.layers)]
    lines.append(f"logits     prefill PCC {found.steps[0]:.6f}")
    lines += [f"logits     decode step {i:>3} PCC {v:.6f}" for i, v in enumerate(found.steps) if i]
    logger.info(
        "=== PCC against Hugging Face float32, lowest of all users ===\n" + "\n".join(lines)
    )
    decode = min(found.steps[1:], default=1.0)
    if strict and (found.steps[0] < PREFILL_LIMIT or decode < DECODE_LIMIT):
        pytest.fail(
            f"PCC of prefill {found.steps[0]:.4f} (limit {PREFILL_LIMIT}), of decode "
            f"{decode:.4f} (limit {DECODE_LIMIT})",
            pytrace=False,
        )
