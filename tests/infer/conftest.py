"""A tokenizer of plain bytes, a template, and a network that says what it is told: text borders become exact."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._contract import Segment
from lorikeet.infer.engine import Engine
from lorikeet.models.cache_views import Decode, Prefill
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.kv_cache import slots
from lorikeet.tokens._spelling import Spelling
from parity import tiny

END = 256
VOCAB = 257


class ByteTokenizer:
    """Follows lorikeet.tokens._contract.Tokenizer: id = byte, and one control token that ends a reply."""

    vocab_size, control, bos_token, eos_token, pad_id = VOCAB, {"<end>": END}, None, "<end>", END
    chat_template, fingerprint, eos_ids = None, "bytes", (END,)
    takes_before, takes_behind, divides = frozenset(), frozenset(), {}
    spelling = Spelling(*[[*(bytes([i]) for i in range(END)), b""]] * 2)

    def encode(self, text: str, *, after: str = "start") -> tuple[list[int], list[tuple[int, int]]]:
        return list(text.encode()), [(i, i + 1) for i, char in enumerate(text) for _ in char.encode()]

    def encode_many(self, texts: Sequence[str], *, after: str = "start") -> list[bytes]:
        return [array("i", self.encode(text, after=after)[0]).tobytes() for text in texts]

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        return bytes(i for i in ids if i < END).decode(errors="replace") + ("" if skip_control else "<end>")

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class LineTemplate:
    """`role: text` and a line break per message."""

    stop_ids, stop_strings, fingerprint = (END,), (), "lines"

    def __init__(self) -> None:
        self.tokenizer = ByteTokenizer()

    def render(self, conversation: Conversation, *, reply: bool = False) -> list[Segment]:
        segments = []
        for index, message in enumerate(conversation.messages):
            segments += [Segment(f"{message.role}: ")]
            segments += [Segment(message.content, message=index, part="content"), Segment("\n")]
        return segments + [Segment("assistant:")] if reply else segments


class Echo(CausalLM):
    """A network that repeats its conversation's beginning: token i of the reply is token i of the prompt.

    All it knows is what the cache holds, so a row that leaves, or is mistaken for another, changes what is said."""

    def __init__(self, max_position: int = 2000):
        super().__init__()
        self.shape = tiny.decoder(
            vocab=VOCAB, heads=1, kv_heads=1, head_dim=2, layers=1, max_position=max_position
        ).shape
        self.weight = torch.zeros(1)
        self.head = self  # type: ignore[assignment]  hidden states are the logits

    def hidden(self, tokens: Tensor, positions: Tensor, view: Prefill | Decode) -> Tensor:
        """Keeps (token, whether it is part of the reply) as the one key of each token."""
        said = isinstance(view, Decode)
        kept = torch.stack([tokens.float(), torch.full((len(tokens),), float(said))], dim=-1)[:, None]
        view.attend(0, kept, kept, kept, scale=0.0)
        logits = torch.zeros(len(tokens), VOCAB)
        sizes = [1] * view.live if isinstance(view, Decode) else map(len, view.chunks)
        at_each = range(view.live) if isinstance(view, Decode) else view.last
        for place, size, at in zip(view.places, sizes, at_each):
            pages, within = map(torch.from_numpy, slots(place, 0, place.length + size))
            read = view.cache.tokens(0, pages, within)[0][:, 0]
            logits[at, int(read[int(read[:, 1].sum()), 0])] = 1.0
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.fixture
def engine() -> Engine:
    """A random network over bytes: its replies are noise, but always the same."""
    model = tiny.decoder(3, vocab=VOCAB, dtype=torch.float32, max_position=96)
    return Engine(model, ByteTokenizer(), LineTemplate())


@pytest.fixture
def echo() -> Engine:
    """Answers a prompt with its own beginning."""
    return Engine(Echo(), ByteTokenizer(), LineTemplate())


def ids(text: str) -> list[int]:
    """`<end>` in the text becomes the control token."""
    found: list[int] = []
    for piece in re.split("(<end>)", text):
        found += [END] if piece == "<end>" else list(piece.encode())
    return found
