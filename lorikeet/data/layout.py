"""Which part of a rendered conversation the model writes itself, and what it saw before: the replies.

A reply begins where the prompt ends that an inference engine would build for it (`render(..., reply=True)` of the
messages before it), not where its text begins: a template may put an empty thought or a line end between the two, and
then the model has to write those too. Where for every trained reply that prompt, and the prompt with the reply, are
prefixes of the whole rendering, the conversation is laid out once. Where they are not (a template that drops earlier
thinking), it is laid out once per trained reply, exactly as at inference.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from lorikeet.base.errors import TemplateError
from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._contract import Segment, Template


@dataclass(frozen=True, slots=True)
class Layout:
    """Segments to train on. `conversation` is the one they are of (its messages may be fewer than the source's);
    messages before `first` were already trained by an earlier layout of the same conversation."""

    conversation: Conversation
    segments: list[Segment]
    first: int = 0


def lay_out(conversation: Conversation, template: Template, trained: Collection[int]) -> list[Layout]:
    """The layouts of a conversation whose replies `trained` (indices of messages) are learned.

    Raises TemplateError where a trained reply has no end (the model would never learn to stop), and where the template
    leaves out the tools.
    """
    starts_of = _Starts(conversation, template)
    full = template.render(conversation)
    _tools_are_shown(conversation, template, full, reply=False)
    starts = {index: starts_of.start(full, index) for index in _replies(conversation)}
    if all(starts[index] is not None and starts_of.is_stable(full, index) for index in trained):
        segments = _mark(full, starts, template)
        _check(conversation, segments, trained)
        return [Layout(conversation, segments)]
    layouts = []
    first = 0
    for index in sorted(trained):
        layouts.append(_one_reply(conversation, template, index, first))
        first = index + 1
    return layouts


def lay_out_once(conversation: Conversation, template: Template, trained: Collection[int]) -> Layout | None:
    """The only layout of a conversation without tools; None where it has several, or where a reply's start cannot be
    told from its prompt."""
    starts_of = _Starts(conversation, template)
    full = template.render(conversation)
    starts = {index: starts_of.start(full, index) for index in _replies(conversation)}
    if None in starts.values() or not all(starts_of.is_stable(full, index) for index in trained):
        return None
    segments = _mark(full, starts, template)
    _check(conversation, segments, trained)
    return Layout(conversation, segments)


def prompt_segments(conversation: Conversation, template: Template) -> list[Segment]:
    """The prompt after which the model answers, with earlier replies marked, so that they encode as they did then."""
    starts_of = _Starts(conversation, template)
    prompt = template.render(conversation, reply=True)
    _tools_are_shown(conversation, template, prompt, reply=True)
    starts = {index: starts_of.start(prompt, index) for index in _replies(conversation)}
    return _mark(prompt, starts, template)


def _where(conversation: Conversation) -> str:
    return str(conversation.origin) if conversation.origin else "a conversation"


def _tools_are_shown(conversation: Conversation, template: Template, segments: list[Segment], *, reply: bool) -> None:
    """Refuse a template that leaves out the tools: calls to tools the model never heard of cannot be learned or made.

    A tool's name in the text proves nothing, because calls and questions have it too: what counts is that the template
    writes something else without the tools. A system prompt that names them all has told of them by itself."""
    if not conversation.tools:
        return
    names = [str((tool.get("function") or tool).get("name", "")) for tool in conversation.tools]
    system = "\n".join(message.content for message in conversation.messages if message.role == "system")
    if all(name in system for name in names):
        return
    try:
        without = template.render(replace(conversation, tools=()), reply=reply)
    except TemplateError:  # it cannot do without
        return
    if "".join(one.text for one in segments) == "".join(one.text for one in without):
        raise TemplateError(
            f"{_where(conversation)}: the template leaves out the tools",
            given=" ".join(names)[:120],
            allowed="a template that shows tools, or conversations without them",
            try_="data.template=react, another one with words for tools, or data.bad_rows=skip",
        )


def _replies(conversation: Conversation) -> list[int]:
    return [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]


def _before(conversation: Conversation, index: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[:index])


def _one_reply(conversation: Conversation, template: Template, index: int, first: int) -> Layout:
    """The prompt as at inference, then this one reply and its end."""
    shorter = _before(conversation, index + 1)
    full = template.render(shorter)
    prompt = prompt_segments(_before(conversation, index), template)
    start = _Starts(shorter, template).start(full, index) or _behind_last_token(prompt, full, index)
    marked = _mark(full, {index: start}, template)
    own = [number for number, segment in enumerate(marked) if segment.message == index]
    if not own:
        raise TemplateError(
            f"{_where(conversation)}: cannot tell where message {index} (assistant) stands in the template's text",
            given="an assistant message without text",
            try_="another data.template, or data.bad_rows=skip",
        )
    segments = [*prompt, *marked[own[0] : own[-1] + 1]]
    _check(shorter, segments, {index})
    return Layout(shorter, segments, first)


Place = tuple[int, int]  # (segment, character in it)


def _behind_last_token(prompt: list[Segment], full: list[Segment], index: int) -> Place | None:
    """Where reply `index` starts in `full` if its prompt ends with a control token but is no prefix of `full`: behind
    the last such token before its text. A space between the two is then the reply's, as it is at inference."""
    if not prompt or not prompt[-1].control:
        return None
    text = next((number for number, segment in enumerate(full) if segment.message == index), len(full))
    for number in range(text - 1, -1, -1):
        if full[number].control and full[number].text == prompt[-1].text:
            return number, len(full[number].text)
        if full[number].message is not None:
            return None
    return None


class _Starts:
    """Where replies start in a rendering; each reply's prompt is rendered once."""

    def __init__(self, conversation: Conversation, template: Template):
        self.conversation, self.template = conversation, template
        self._prompts: dict[int, list[Segment] | None] = {}

    def start(self, rendering: list[Segment], index: int) -> Place | None:
        """Where the prompt of reply `index` ends in `rendering`; None if it is no prefix of it."""
        if index not in self._prompts:
            try:
                self._prompts[index] = self.template.render(_before(self.conversation, index), reply=True)
            except TemplateError:  # nothing this template can say comes before the reply: it starts where its text does
                self._prompts[index] = None
        prompt = self._prompts[index]
        return None if prompt is None else match_prefix(prompt, rendering)

    def is_stable(self, full: list[Segment], index: int) -> bool:
        """Whether reply `index` stands in `full` as it does where it is the last: a template may write a thought
        into the last reply alone."""
        if index == len(self.conversation.messages) - 1:
            return True
        last = self.template.render(_before(self.conversation, index + 1))
        marked = _mark(last, {index: self.start(last, index)}, self.template)
        end = max((number for number, segment in enumerate(marked) if segment.message == index), default=-1)
        return match_prefix(marked[: end + 1], full) is not None


def match_prefix(prompt: list[Segment], full: list[Segment]) -> Place | None:
    """Where in `full` the rendering `prompt` ends, if it is a prefix (same text, same control tokens); else None."""
    at, offset = 0, 0
    for segment in prompt:
        text = segment.text
        while text:
            while at < len(full) and offset == len(full[at].text):
                at, offset = at + 1, 0
            if at == len(full) or full[at].control != segment.control:
                return None
            length = len(text) if segment.control else min(len(text), len(full[at].text) - offset)
            if not full[at].text.startswith(text[:length], offset) or (segment.control and full[at].text != text):
                return None
            text, offset = text[length:], offset + length
    return at, offset


def _as_reply(segment: Segment, index: int) -> Segment:
    part = segment.part if segment.message == index else "content"
    return replace(segment, message=index, part="end" if part == "end" else "content", reply=True)


def _mark(segments: list[Segment], starts: dict[int, Place | None], template: Template) -> list[Segment]:
    """Segments with `reply=True` from where each reply starts to the end that closes it."""
    marked = list(segments)
    # from the last to the first, so that a cut does not move the places still to come
    for index in sorted(starts, reverse=True):
        start = starts[index]
        if start is not None:
            at, offset = start
            if at < len(marked) and 0 < offset < len(marked[at].text):
                whole = marked[at]
                marked[at : at + 1] = [
                    replace(whole, text=whole.text[:offset]),
                    replace(whole, text=whole.text[offset:]),
                ]
                at += 1
            elif at < len(marked) and offset:
                at += 1
        else:
            at = next((number for number, segment in enumerate(marked) if segment.message == index), len(marked))
        end = _end_of(marked, index, at, template)
        marked[at:end] = [_as_reply(segment, index) for segment in marked[at:end]]
        if at < end and marked[end - 1].control:
            marked[end - 1] = replace(marked[end - 1], part="end")
    return marked


def _end_of(segments: list[Segment], index: int, at: int, template: Template) -> int:
    """One past the last segment of the reply that starts at segment `at`."""
    own = [number for number in range(at, len(segments)) if segments[number].message == index]
    if own:
        closed = [number for number in own if segments[number].part == "end"]
        return 1 + (closed or own)[-1]
    # a reply of tool calls alone has no text to stand at: it goes up to the first token that stops
    for number in range(at, len(segments)):
        segment = segments[number]
        if segment.message is not None:
            break
        if segment.control and template.tokenizer.control[segment.text] in template.stop_ids:
            return number + 1
    return at


def _check(conversation: Conversation, segments: list[Segment], trained: Collection[int]) -> None:
    """Refuse a trained reply that never ends, or of which the template drops a part (its thoughts, say)."""
    for index in trained:
        numbers = [number for number, segment in enumerate(segments) if segment.message == index]
        if not any(segments[number].part == "end" for number in numbers):
            raise TemplateError(
                f"{_where(conversation)}: the template closes message {index} (assistant) with no end-of-turn token, "
                "so replies would never learn to stop",
                given="".join(segment.text for segment in segments)[-80:],
                allowed="EOS or an end-of-turn control token behind each reply",
                try_="another data.template, or one of your own: data.template='{kind: jinja, path: ...}'",
            )
        wanted = "".join(conversation.messages[index].content.split())
        # the prompt may already say how the reply begins (<think>, or ReAct's Thought:), so what stands before counts
        before = "".join("".join(segment.text for segment in segments[: numbers[0]])[-40:].split())
        written = "".join("".join(segments[number].text for number in numbers).split())
        if wanted not in before + written:
            raise TemplateError(
                f"{_where(conversation)}: the template drops a part of message {index} (assistant), which is learned",
                given=conversation.messages[index].content[:120],
                allowed="replies that the template shows whole where they come last",
                try_="data without the thoughts between <think> and </think>, or a template of your own",
            )
