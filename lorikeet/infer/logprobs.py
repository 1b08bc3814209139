"""How likely each token was, as the network itself says: before temperature, penalties, biases and guides.

A token may be half a character. Its text then says the bytes, as `\\xf0\\x9f`, and not a question mark.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lorikeet.tokens._contract import Tokenizer


@dataclass(frozen=True)
class TokenLogprob:
    """A token, the natural logarithm of its probability, and the most likely ones in its place, best first."""

    id: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    raw: bytes = b""  # what the token adds to the text; a control token's name


def token_logprob(logits: Tensor, id: int, top: int, tokenizer: Tokenizer, *, first: bool) -> TokenLogprob:
    """Of the token `id`, and the `top` most likely, from logits [V]. `first`: it begins its text, where some tokenizers
    drop a space. Raises TokenizerError where tokens have no bytes of their own."""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(min(top, len(logprobs)))
    others = [_one(other, value, tokenizer, first) for other, value in zip(best.indices.tolist(), best.values.tolist())]
    found = _one(id, float(logprobs[id]), tokenizer, first)
    return TokenLogprob(found.id, found.text, found.logprob, tuple(others), found.raw)


def _one(id: int, logprob: float, tokenizer: Tokenizer, first: bool) -> TokenLogprob:
    spelling = tokenizer.spelling.first if first else tokenizer.spelling.inside
    raw = spelling[id] if id < len(spelling) else b""
    if not raw:
        raw = next((name.encode() for name, control in tokenizer.control.items() if control == id), b"")
    return TokenLogprob(id, raw.decode(errors="backslashreplace"), logprob, (), raw)
