"""Segments to token ids and loss weights.

The text is split only at control tokens and where a reply starts; what lies between is encoded as one string, so the
prompt's ids are exactly those an inference engine computes. A token's weight is the largest of its characters'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from lorikeet.base.nouns import Conversation
from lorikeet.data.layout import Layout, lay_out, prompt_segments
from lorikeet.data.loss import LossOptions, segment_weights, trained_replies
from lorikeet.data.templates._contract import Segment, Template
from lorikeet.tokens._contract import After, Tokenizer


def encode(
    segments: Sequence[Segment], weights: Sequence[float], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """(ids [L] int32, weights [L] float32). The first weight is 0: nothing predicts the first token."""
    assert len(segments) == len(weights)
    parts = [encode_run(segments, weights, run, tokenizer) for run in runs(segments)]
    tokens = np.array([token for ids, _ in parts for token in ids], np.int32)
    loss = np.concatenate([losses for _, losses in parts]) if parts else np.zeros(0, np.float32)
    loss[:1] = 0
    return tokens, loss


def encode_run(
    segments: Sequence[Segment], weights: Sequence[float], run: range, tokenizer: Tokenizer
) -> tuple[list[int], np.ndarray]:
    """(ids, weights [ids] float32) of one of the `runs`."""
    if segments[run.start].control:
        return [tokenizer.control[segments[run.start].text]], np.array([weights[run.start]], np.float32)
    texts = [segments[number].text for number in run]
    ids, offsets = tokenizer.encode("".join(texts), after=after_of(segments, run))
    return ids, _token_weights(offsets, [len(text) for text in texts], [weights[number] for number in run])


def after_of(segments: Sequence[Segment], run: range) -> After:
    """What the text of a run follows."""
    if run.start == 0:
        return "start"
    return "control" if segments[run.start - 1].control else "text"


def runs(segments: Sequence[Segment]) -> Iterator[range]:
    """Ranges of segments that are encoded together: one control token, or text up to the next split."""
    starts = [0] if segments else []
    for number, (left, right) in enumerate(pairwise(segments), 1):
        fresh_reply = right.reply and (not left.reply or left.message != right.message)
        if left.control or right.control or fresh_reply:
            starts.append(number)
    for start, end in pairwise([*starts, len(segments)]):
        yield range(start, end)


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
