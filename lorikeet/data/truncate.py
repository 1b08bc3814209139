"""Conversations longer than `max_length`: three named policies, never in silence.

    drop         the conversation is left out
    cut          the tokens past max_length are left out, as most tools do: a long question then loses its answer
    keep_reply   the oldest turns go first, then the start of the question (of an alpaca row the start of its input, and
                 only then of its instruction), so that the last reply survives; a reply that alone is too long is cut
                 at its end; of a document nothing is lost: it becomes several windows

The windows of a document are slices of its ids (never decoded and encoded again, so no token changes at an edge). Each
but the first begins with the last `stride` tokens of the one before as context, weight 0, so every token is learned
exactly once, and none without something before it. Where the model has a BOS every window has it in front, as every
prompt has: without it the loss of Gemma 3 270M on the middle of a text is 5.8 instead of 4.5, and training would repair
that instead of learning the text. EOS stands at the document's end alone.

Nothing is cut inside the template's own text by `keep_reply`: a shorter conversation is rendered again, so what is
trained on is always what an inference engine would build for that shorter conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lorikeet.base.errors import DataError, LorikeetError, TemplateError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.encode import encode_conversation
from lorikeet.data.layout import Layout
from lorikeet.data.loss import LossOptions, message_weights
from lorikeet.data.templates._contract import Template
from lorikeet.tokens._contract import Tokenizer

Truncation = Literal["drop", "cut", "keep_reply"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One example to be, or the reason why there is none."""

    tokens: np.ndarray  # [L] int32
    weights: np.ndarray  # [L] float32
    cut: bool = False
    dropped: str | None = None
    # what the ledger needs, to say where each token comes from
    layout: Layout | None = None  # the tokens are of its encoding
    ranges: tuple[tuple[int, int], ...] | None = None  # which of that encoding's tokens; None: all
    numbers: tuple[int, ...] | None = None  # which messages of the conversation the layout's are; None: the first ones
    whole: int = 0  # tokens before anything was cut


@dataclass(frozen=True, slots=True)
class Encoder:
    """Everything that decides a conversation's ids and weights."""

    template: Template
    tokenizer: Tokenizer
    loss: LossOptions
    max_length: int
    truncation: Truncation

    def usable(self, conversation: Conversation) -> tuple[list[Piece], LorikeetError | None]:
        """The conversation's pieces, and why none of it can be used, where that is so."""
        try:
            pieces = list(self.pieces(conversation))
        except TemplateError as error:
            return [], error
        if any(piece.dropped != "no trained token" for piece in pieces):
            return pieces, None
        roles = " ".join(message.role for message in conversation.messages)
        return pieces, DataError(
            f"{conversation.origin}: no token of this conversation is learned",
            given=f"roles {roles}; data.loss={self.loss.loss}",
            allowed="at least one trained message",
            try_="data.bad_rows=skip leaves such rows out and counts them",
        )

    def pieces(self, conversation: Conversation) -> Iterator[Piece]:
        """The conversation's examples. One without any trained token before truncation is yielded with
        `dropped="no trained token"`; the caller decides whether that is an error."""
        for layout, tokens, weights in encode_conversation(conversation, self.template, self.tokenizer, self.loss):
            whole = len(tokens)
            if not weights.any():
                yield Piece(tokens, weights, dropped="no trained token", layout=layout, whole=whole)
            elif whole <= self.max_length:
                yield Piece(tokens, weights, layout=layout, whole=whole)
            elif self.truncation == "drop":
                yield Piece(tokens, weights, dropped="longer than max_length", layout=layout, whole=whole)
            elif self.truncation == "keep_reply" and layout.conversation.messages[0].role == "text":
                yield from self._windows(layout, tokens, weights, conversation)
            else:
                numbers = None
                if self.truncation == "keep_reply":
                    layout, numbers, tokens, weights = self._keep_reply(layout)
                ranges = ((0, min(len(tokens), self.max_length)),)
                tokens, weights = tokens[: self.max_length], weights[: self.max_length]
                lost = None if weights.any() else "no trained token within max_length"
                yield Piece(tokens, weights, True, lost, layout, ranges, numbers, whole)

    def _windows(
        self, layout: Layout, tokens: np.ndarray, weights: np.ndarray, document: Conversation
    ) -> Iterator[Piece]:
        """A document's windows. Raises DataError for a stride that leaves a window nothing new."""
        bos = self.tokenizer.control.get(self.tokenizer.bos_token or "")
        head = 1 if bos is not None and tokens[0] == bos else 0
        room = self.max_length - head
        stride = max(1, self.max_length // 8) if document.stride is None else document.stride
        if stride >= room:
            raise DataError(
                "data.format.stride: a window would have room for nothing but what it repeats",
                given=f"stride {stride}, data.max_length {self.max_length}",
                allowed=f"1 to {room - 1}",
                try_=f"data.format.stride={self.max_length // 8}",
            )
        for start in range(head, len(tokens) - stride, room - stride):
            repeated = stride if start > head else 0
            own = np.concatenate((weights[:head], weights[start : start + room]))
            own[head : head + repeated] = 0
            window = np.concatenate((tokens[:head], tokens[start : start + room]))
            ranges = ((0, head), (start, min(start + room, len(tokens))))
            yield Piece(window, own, layout=layout, ranges=ranges, whole=len(tokens))

    def _keep_reply(self, layout: Layout) -> tuple[Layout, tuple[int, ...], np.ndarray, np.ndarray]:
        """(layout, its messages' places in the conversation, ids, weights) of a shorter conversation; longer than
        max_length only where the reply itself is."""
        conversation = layout.conversation
        # replies that an earlier layout trained must not train again
        messages = tuple(
            replace(message, trained=False) if index < layout.first else message
            for index, message in enumerate(conversation.messages)
        )
        conversation = _up_to_last_trained(replace(conversation, messages=messages), self.loss)
        low, high = 0, len(_turn_starts(conversation)) - 1
        # the fewest oldest turns to leave out: bisection, because each look renders the conversation again
        while low < high:
            middle = (low + high) // 2
            if len(self._encode(_without_turns(conversation, middle))[1]) <= self.max_length:
                high = middle
            else:
                low = middle + 1
        shorter, kept = _without_turns(conversation, max(low, 0)), _kept(conversation, max(low, 0))
        layout, tokens, weights = self._shorten_question(shorter, *self._encode(shorter))
        return layout, tuple(kept[: len(layout.conversation.messages)]), tokens, weights

    def _encode(self, conversation: Conversation) -> tuple[Layout, np.ndarray, np.ndarray]:
        """The last layout with its ids and weights: the one with the last trained reply."""
        return encode_conversation(conversation, self.template, self.tokenizer, self.loss)[-1]

    def _shorten_question(
        self, conversation: Conversation, layout: Layout, tokens: np.ndarray, weights: np.ndarray
    ) -> tuple[Layout, np.ndarray, np.ndarray]:
        """Take tokens off the start of the longest question until the conversation fits; a few remain."""
        messages = list(conversation.messages)
        questions = [index for index, message in enumerate(messages) if message.role in ("user", "tool")]
        if not questions:
            return layout, tokens, weights
        index = max(questions, key=lambda question: len(messages[question].content))
        for _ in range(8):  # the ids of a shorter text can differ by one or two at the new start: look again
            excess = len(tokens) - self.max_length
            shorter = _shorter(messages[index], excess, self.tokenizer) if excess > 0 else None
            if shorter is None:
                break
            messages[index] = shorter
            layout, tokens, weights = self._encode(replace(conversation, messages=tuple(messages)))
        return layout, tokens, weights


def _shorter(message: Message, excess: int, tokenizer: Tokenizer) -> Message | None:
    """`message` without about `excess` tokens of its start, or of its input's where it has one; None where too little
    is left to take any."""
    text = message.context or message.content
    before = message.content.removesuffix(text)  # an instruction, and the line end behind it
    offsets = tokenizer.encode(text)[1]
    if before and excess >= len(offsets):
        return replace(message, content=before.rstrip("\n"), context=None)
    if len(offsets) <= 1:
        return None
    start = offsets[min(excess, len(offsets) - 1)][0]
    rest = text[max(start, 1) :].lstrip()
    if before and rest:
        return replace(message, content=before + rest, context=rest)
    return replace(message, content=rest or before.rstrip("\n"), context=None) if rest or before else None


def _up_to_last_trained(conversation: Conversation, loss: LossOptions) -> Conversation:
    """Without what comes after the last learned message: it has no effect on any learned token."""
    weights = message_weights(conversation, loss)
    last = max((index for index, weight in enumerate(weights) if weight > 0), default=len(weights) - 1)
    return replace(conversation, messages=conversation.messages[: last + 1])


def _turn_starts(conversation: Conversation) -> list[int]:
    """Indices of user messages that start a turn (the first of several in a row)."""
    roles = [message.role for message in conversation.messages]
    return [index for index, role in enumerate(roles) if role == "user" and (index == 0 or roles[index - 1] != "user")]


def _kept(conversation: Conversation, count: int) -> list[int]:
    """Indices of the messages that are left without the `count` oldest turns; system messages in front stay."""
    messages = conversation.messages
    if count == 0:
        return list(range(len(messages)))
    starts = _turn_starts(conversation)
    head = [index for index in range(starts[0]) if messages[index].role == "system"]
    return [*head, *range(starts[count], len(messages))]


def _without_turns(conversation: Conversation, count: int) -> Conversation:
    """The conversation without its `count` oldest turns; system messages in front stay."""
    kept = _kept(conversation, count)
    return replace(conversation, messages=tuple(conversation.messages[index] for index in kept))
