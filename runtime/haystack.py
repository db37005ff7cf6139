"""Deterministic long contexts with one fact hidden in them, so that a long run can be checked.

The same seed always gives the same text. Its length is counted by the caller's tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

WHO = [
    "The harbour master",
    "A retired surveyor",
    "The night baker",
    "Our neighbour's daughter",
    "The librarian",
    "A travelling clockmaker",
    "The new apprentice",
    "The ferry pilot",
    "An old gardener",
    "The choir director",
    "The lighthouse keeper",
    "A careful archivist",
    "The youngest of the cousins",
    "The postmistress",
]
DID = [
    "counted",
    "carried",
    "repaired",
    "painted",
    "described",
    "traded",
    "misplaced",
    "polished",
    "measured",
    "sketched",
    "wrapped",
    "borrowed",
    "returned",
    "inspected",
]
WHAT = [
    "three copper kettles",
    "a crate of pears",
    "the longest rope in the shed",
    "two maps of the valley",
    "a stack of blue plates",
    "the broken weather vane",
    "a basket of walnuts",
    "an unsigned letter",
    "the spare oars",
    "a tin of nails",
    "the winter blankets",
    "a jar of honey",
    "forty brass buttons",
]
WHERE = [
    "behind the mill",
    "near the stone bridge",
    "at the edge of the orchard",
    "in the town hall",
    "by the railway siding",
    "under the market roof",
    "on the upper terrace",
    "beside the well",
    "outside the chapel",
    "along the canal",
]
WHEN = [
    "before breakfast",
    "on a rainy Tuesday",
    "while the bells rang",
    "late in the autumn",
    "at low tide",
    "during the long interval",
    "after the fair had left",
    "just as the lamps were lit",
]
SENTENCES_PER_PARAGRAPH = 8


class Haystack(BaseModel):
    """What to build: about `tokens` tokens of text with `needle` at `depth` (0 start, 1 end)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(ge=128)
    needle: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    depth: float = Field(default=0.5, ge=0, le=1)
    seed: int = 0


def build_haystack(spec: Haystack, count_tokens: Callable[[str], int], *, room: int) -> str:
    """Text of at most min(spec.tokens, room) tokens, to within a sentence of that length."""
    budget = min(spec.tokens, room) - count_tokens(" " + spec.needle)
    rng = random.Random(spec.seed)
    sentences: list[str] = []
    while True:
        new_paragraph = sentences and len(sentences) % SENTENCES_PER_PARAGRAPH == 0
        # counted with the space before it, as vocabularies do: parts add up to the whole
        sentence = ("\n\n" if new_paragraph else " ") + _sentence(rng)
        budget -= count_tokens(sentence)
        if budget < 0:
            break
        sentences.append(sentence)
    sentences.insert(round(spec.depth * len(sentences)), " " + spec.needle)
    return "".join(sentences).strip()


def _sentence(rng: random.Random) -> str:
    when, who = rng.choice(WHEN), rng.choice(WHO)
    rest = f"{rng.choice(DID)} {rng.choice(WHAT)} {rng.choice(WHERE)}"
    if rng.random() < 0.5:
        return f"{who} {rest} {when}."
    return f"{when[0].upper()}{when[1:]}, {who[0].lower()}{who[1:]} {rest}."
