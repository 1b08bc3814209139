"""Conversations of one shape are written alike: a template is asked once for the shape, then only texts are put in.

A shape is what a rendering depends on besides the texts: the roles, which texts are empty, which messages are learned.
The template writes a conversation of the shape around holes (`templates/_hole.py`), the layout and the weights follow
as for any conversation, and what comes out is a plan: ids that are always the same, and texts to encode. Where a
template looks into a text, or lays a conversation out several times, there is no plan, and every such conversation
goes the long way (`truncate.Encoder`). Both ways give the same bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorikeet.base.errors import TemplateError
from lorikeet.base.nouns import Conversation
from lorikeet.data.encode import Run, encode_run, kept, runs
from lorikeet.data.layout import Layout, lay_out_once
from lorikeet.data.loss import LossOptions, segment_weights, trained_replies
from lorikeet.data.templates._contract import Segment, Template
from lorikeet.data.templates._hole import HOLE, KINDS, Inspected, number_of, plain_text, strip_as, texts_as_holes
from lorikeet.tokens._contract import WHITE, After, Tokenizer

_ROLES = frozenset(("system", "user", "assistant"))
Shape = tuple[tuple[str, bool, bool, bool | None, float | None], ...]


@dataclass(frozen=True, slots=True)
class Known:
    """Tokens that are the same in every conversation of the shape."""

    ids: bytes  # int32
    weights: bytes  # float32


@dataclass(frozen=True, slots=True)
class Asked:
    """A text to encode: known text and marks of holes in turn, known first; all its tokens have one weight."""

    parts: tuple[str, ...]
    run: Run
    weight: float

    @property
    def after(self) -> After:
        """What the text follows."""
        return self.run.after


Plan = tuple[Known | Asked, ...]


def shape_of(conversation: Conversation) -> Shape | None:
    """What the conversation's rendering depends on besides its texts; None for one that goes the long way."""
    if conversation.tools:
        return None
    found = []
    for message in conversation.messages:
        if message.role not in _ROLES or message.tool_calls or message.name or message.tool_call_id:
            return None
        context = message.context is not None
        if context and not message.content.endswith("\n" + str(message.context)):
            return None
        found.append((message.role, bool(message.content), context, message.trained, message.weight))
    return tuple(found)


class Plans:
    """The plans of all shapes met so far."""

    def __init__(self, template: Template, tokenizer: Tokenizer, loss: LossOptions):
        self._template, self._tokenizer, self._loss = template, tokenizer, loss
        self._made: dict[Shape, Plan | None] = {}

    def of(self, conversation: Conversation) -> Plan | None:
        """The plan of the conversation's shape; None where each has to be rendered for itself."""
        shape = shape_of(conversation)
        if shape is None:
            return None
        if shape not in self._made:
            if len(self._made) >= 1024:  # long conversations have a shape of their own nearly each
                return None
            self._made[shape] = self._make(conversation)
        return self._made[shape]

    def _make(self, conversation: Conversation) -> Plan | None:
        holes = _Holes(self._template)
        # the layout compares texts, so it sees the marks as plain strings
        messages = texts_as_holes(conversation.messages)
        marked = tuple(replace(message, content=plain_text(message.content)) for message in messages)
        conversation = replace(conversation, messages=marked)
        try:
            layout = lay_out_once(conversation, holes, trained_replies(conversation, self._loss))
        except (Inspected, TemplateError):
            return None
        return None if layout is None or not holes.trusted else self._compiled(layout)

    def _compiled(self, layout: Layout) -> Plan | None:
        weights = segment_weights(layout.conversation, layout.segments, self._loss, layout.first)
        plan: list[Known | Asked] = []
        for run in runs(layout.segments, self._tokenizer):
            if plan and not layout.segments[run.numbers[0]].control and self._may_divide(plan[-1]):
                return None
            text = "".join(layout.segments[number].text for number in run.numbers)
            if not HOLE.search(text):
                ids, loss = encode_run(layout.segments, weights, run, self._tokenizer)
                plan.append(Known(array("i", ids).tobytes(), loss.tobytes()))
            elif len({weights[number] for number in run.numbers}) > 1:
                return None
            else:
                plan.append(Asked(tuple(HOLE.split(text)), run, weights[run.numbers[0]]))
        return tuple(plan)

    def _may_divide(self, before: Known | Asked) -> bool:
        """Whether the ids of a text that follows may depend on how this one ends, which is not known yet."""
        if isinstance(before, Known):
            return False
        known = before.parts[-1].rstrip(WHITE)
        return any(name.endswith(known) for name in self._tokenizer.divides)


class _Holes:
    """The template as it writes around holes."""

    def __init__(self, template: Template):
        self.template, self.tokenizer = template, template.tokenizer
        self.stop_ids, self.stop_strings = template.stop_ids, template.stop_strings
        self.fingerprint = template.fingerprint
        # a template of one's own may hand a text to anything, which a hole would not notice
        self.trusted = type(template).__module__.startswith("lorikeet.")

    def render(self, conversation: Conversation, *, reply: bool = False) -> list[Segment]:
        """The segments, with the marks of holes as plain text."""
        if not self.trusted:
            raise Inspected
        hidden = replace(conversation, messages=texts_as_holes(conversation.messages))
        written = self.template.render(hidden, reply=reply)
        return [replace(segment, text=plain_text(segment.text)) for segment in written]


def texts(plan: Plan, conversation: Conversation) -> list[str] | None:
    """The texts that the plan asks for; None where the conversation is not as the plan assumes: a text of white space
    alone, where the template strips it or a control token takes it."""
    found = []
    for part in plan:
        if isinstance(part, Known):
            continue
        pieces = list(part.parts)
        for at in range(1, len(pieces), 2):
            mark = pieces[at]
            pieces[at] = strip_as(mark, _text(conversation, number_of(mark)))
            if not pieces[at]:
                return None
        text = "".join(pieces)
        start, end = kept(text, part.run.front, part.run.back)
        if start == end:
            return None
        found.append(text[start:end])
    return found


def _text(conversation: Conversation, number: int) -> str:
    index, kind = divmod(number, KINDS)
    message = conversation.messages[index]
    if kind == 0:
        return message.content
    assert message.context is not None
    return message.context if kind == 2 else message.content[: -len(message.context) - 1]


def fill(plan: Plan, ids: Sequence[bytes]) -> tuple[bytes, bytes]:
    """(ids as int32, weights as float32) of a conversation whose texts have `ids`."""
    tokens, weights, at = list[bytes](), list[bytes](), 0
    for part in plan:
        if isinstance(part, Known):
            tokens.append(part.ids)
            weights.append(part.weights)
        else:
            tokens.append(ids[at])
            weights.append(array("f", (part.weight,)).tobytes() * (len(ids[at]) // 4))
            at += 1
    loss = b"".join(weights)
    return b"".join(tokens), b"\0\0\0\0" + loss[4:]


def as_arrays(tokens: bytes, weights: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The same as arrays: [L] int32 and [L] float32."""
    return np.frombuffer(tokens, np.int32), np.frombuffer(weights, np.float32)
