"""Segments to token ids and loss weights.

The text is split only at control tokens and where a reply starts; what lies between is encoded as one string, so the
prompt's ids are exactly those an inference engine computes. A token's weight is the largest of its characters'.

White space beside a control token that takes it is left out first, as where the whole text is tokenized at once: a
message's too, and a reply's. What comes before a reply is encoded before the reply is there: a token that the reply
begins with takes nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lorikeet.base.nouns import Conversation
from lorikeet.data.layout import Layout, lay_out, prompt_segments
from lorikeet.data.loss import LossOptions, segment_weights, trained_replies
from lorikeet.data.templates._contract import Segment, Template
from lorikeet.tokens._contract import WHITE, After, Tokenizer


class Run(NamedTuple):
    """Segments that are encoded together: one control token, or text up to the next split."""

    numbers: range
    after: After  # what the text follows
    front: bool = False  # the white space that it begins with is a control token's
    back: bool = False  # that it ends with


def encode(
    segments: Sequence[Segment], weights: Sequence[float], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """(ids [L] int32, weights [L] float32). The first weight is 0: nothing predicts the first token."""
    assert len(segments) == len(weights)
    parts = [encode_run(segments, weights, run, tokenizer) for run in runs(segments, tokenizer)]
    tokens = np.array([token for ids, _ in parts for token in ids], np.int32)
    loss = np.concatenate([losses for _, losses in parts]) if parts else np.zeros(0, np.float32)
    loss[:1] = 0
    return tokens, loss


def encode_run(
    segments: Sequence[Segment], weights: Sequence[float], run: Run, tokenizer: Tokenizer
) -> tuple[list[int], np.ndarray]:
    """(ids, weights [ids] float32) of one of the `runs`."""
    first = run.numbers[0]
    if segments[first].control:
        return [tokenizer.control[segments[first].text]], np.array([weights[first]], np.float32)
    ids, offsets = encode_text(segments, run, tokenizer)
    lengths = [len(segments[number].text) for number in run.numbers]
    return ids, _token_weights(offsets, lengths, [weights[number] for number in run.numbers])


def encode_text(segments: Sequence[Segment], run: Run, tokenizer: Tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, spans) of a run of text; spans are of characters of its segments, joined."""
    text = _text(segments, run.numbers)
    start, end = kept(text, run.front, run.back)
    if start == end and text:
        return [], []
    ids, offsets = tokenizer.encode(text[start:end], after=run.after)
    return ids, [(start + one, start + other) for one, other in offsets] if start else offsets


def kept(text: str, front: bool, back: bool) -> tuple[int, int]:
    """(start, end) of what is left of a run's text beside control tokens that take white space."""
    start = len(text) - len(text.lstrip(WHITE)) if front else 0
    return start, max(start, len(text.rstrip(WHITE))) if back else len(text)


def runs(segments: Sequence[Segment], tokenizer: Tokenizer) -> Iterator[Run]:
    """What is encoded together, in order."""
    starts = [0] if segments else []
    for number, (left, right) in enumerate(pairwise(segments), 1):
        if left.control or right.control or _begins_reply(left, right):
            starts.append(number)
    after: After = "start"
    front = False
    for start, end in pairwise([*starts, len(segments)]):
        numbers, first = range(start, end), segments[start]
        if first.control:
            yield Run(numbers, after)
            after, front = "control", first.text in tokenizer.takes_behind
            continue
        behind = segments[end] if end < len(segments) else None
        back = behind is not None and behind.control and behind.text in tokenizer.takes_before
        yield Run(numbers, after, front, back and not _begins_reply(segments[end - 1], segments[end]))
        # of white space that a control token takes nothing is left: what comes next still follows that token
        if not front or _text(segments, numbers).lstrip(WHITE):
            ends = None if behind is None or behind.control else _last_token(segments, numbers, after, tokenizer)
            after, front = ("text", False) if ends is None else ("control", ends in tokenizer.takes_behind)


def _last_token(segments: Sequence[Segment], numbers: range, after: After, tokenizer: Tokenizer) -> str | None:
    """The token of plain text that a run ends with, where what follows is encoded as behind a control token."""
    if not tokenizer.divides:
        return None
    text = _text(segments, numbers)
    bare = text.rstrip(WHITE)
    ways = [name for name in tokenizer.divides if (bare if name in tokenizer.takes_behind else text).endswith(name)]
    last = tokenizer.encode(text, after=after)[0][-1:] if ways else []
    return next((name for name in ways if last == [tokenizer.divides[name]]), None)


def _begins_reply(left: Segment, right: Segment) -> bool:
    return right.reply and (not left.reply or left.message != right.message)


def _text(segments: Sequence[Segment], numbers: range) -> str:
    return "".join([segments[number].text for number in numbers])


def _token_weights(offsets: Sequence[tuple[int, int]], lengths: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """[tokens] float32: for each token the largest weight of the characters it covers."""
    if len(set(weights)) == 1:
        return np.full(len(offsets), weights[0], np.float32)
    characters = np.append(np.repeat(np.array(weights, np.float32), lengths), np.float32(0))
    if not offsets:
        return np.zeros(0, np.float32)
    spans = np.minimum(np.array(offsets, np.int64), len(characters) - 1)
    # reduceat over start, end, start, end, ... : every second result is a token's; an empty span gives its first
    return np.maximum.reduceat(characters, spans.reshape(-1))[::2]


def encode_prompt(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids after which the model answers: the conversation without a final assistant message."""
    segments = prompt_segments(conversation.prompt(), template)
    ids, _ = encode(segments, [0.0] * len(segments), tokenizer)
    return [int(token) for token in ids]


def encode_conversation(
    conversation: Conversation, template: Template, tokenizer: Tokenizer, loss: LossOptions
) -> list[tuple[Layout, np.ndarray, np.ndarray]]:
    """(layout, ids [L] int32, weights [L] float32): one, or one per trained reply where the template asks for it."""
    encoded = []
    for layout in lay_out(conversation, template, trained_replies(conversation, loss)):
        weights = segment_weights(layout.conversation, layout.segments, loss, layout.first)
        encoded.append((layout, *encode(layout.segments, weights, tokenizer)))
    return encoded
