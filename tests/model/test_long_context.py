"""The default model at its full context, whole and in chunks, against HF."""

from __future__ import annotations

import pytest
import torch

from tests.model.helpers import engine_of, hf_logits, pcc, random_pages, random_prompt

CONTEXT = 8192


@pytest.mark.full
@pytest.mark.parametrize("chunk", [8192, 2048])
def test_a_prompt_that_fills_the_context_agrees_with_hf(chunk: int) -> None:
    from models.checkpoints.open import open_checkpoint
    from models.checkpoints.reference import build_reference

    checkpoint = open_checkpoint("default")
    prompt = random_prompt(checkpoint.config.vocab_size, CONTEXT - 1)
    reference = build_reference(checkpoint, attn_implementation="sdpa")
    expected = hf_logits(reference, prompt, 1)[0]
    with engine_of(checkpoint, max_seq_len=CONTEXT, chunk=chunk) as engine:
        logits = engine.prefill([prompt], slots=[0], page_table=random_pages(engine))[0]
        assert pcc(logits, expected) >= 0.999
        token = logits.argmax().reshape(1).to(torch.int32)
        position = torch.tensor([CONTEXT - 1], dtype=torch.int32)
        last = engine.decode(token, position, page_table=random_pages(engine))[0]
    grown = hf_logits(reference, [*prompt, int(token)], 1)[0]
    assert pcc(last, grown) >= 0.999
