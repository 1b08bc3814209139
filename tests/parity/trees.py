"""Hypothesis strategies: sets of conversations that share prefixes, nested, with duplicates, trained anywhere."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from lorikeet.base.nouns import Example
from parity.tiny import VOCAB, example

# eighths add up exactly in float32, so that a sum of shared weights loses nothing and float64 claims can be sharp
WEIGHTS = st.sampled_from([0.0, 0.0, 0.125, 0.5, 1.0, 1.75])


@st.composite
def conversations(draw: Any, most: int = 6, vocab: int = VOCAB) -> list[Example]:
    """Each conversation keeps a piece of one drawn before (often all of it) and goes on with tokens of its own."""
    found: list[list[int]] = []
    for _ in range(draw(st.integers(1, most))):
        kept: list[int] = []
        if found and draw(st.integers(0, 3)):
            whole = draw(st.sampled_from(found))
            kept = whole[: draw(st.integers(0, len(whole)))]
        own = draw(st.lists(st.integers(0, vocab - 1), min_size=0 if len(kept) > 1 else 2, max_size=7))
        found.append(kept + own)
    examples = []
    for tokens in found:
        weights = draw(st.lists(WEIGHTS, min_size=len(tokens), max_size=len(tokens)))
        weights[-1] = weights[-1] or 1.0  # a conversation without a trained token is refused long before
        examples.append(example(tokens, weights))
    return examples
