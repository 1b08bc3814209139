"""The model's own chat template, followed exactly: which characters are the template's, which are a message's.

A jinja template returns one string. To split only the template's own text at control tokens, it is rendered twice:
with the true texts (A), and with a private placeholder for each text (B). Between the placeholders of B stands the
template's own text; where A is the same with each placeholder replaced by its text, or by that text stripped, the
spans are proved, not guessed. A template that changes texts in any other way is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import jinja2
from pydantic import Field, model_validator

from lorikeet.base.errors import TemplateError, nearest
from lorikeet.base.kinds import kinds
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._bound import BoundTemplate, split_control
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.data.templates._environment import chat_environment, compile_template, to_json
from lorikeet.data.templates._hole import HOLE, KINDS, Hole, Inspected, hole, number_of
from lorikeet.data.templates._plain_jinja import writes_around_texts
from lorikeet.data.templates._suits import suiting
from lorikeet.data.templates._tools import read_arguments
from lorikeet.tokens._contract import Tokenizer

# two private-use characters around a number: no tokenizer, filter or template gives them a meaning
_OPEN, _CLOSE = "\uf8e7", "\uf8e8"
_PLACEHOLDER = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_THINKING = re.compile(r"(\s*<think>\s*)(.*?)(\s*</think>\s*)(.*)", re.DOTALL)
_STRIPS: tuple[Callable[[str], str], ...] = (
    str,
    str.rstrip,
    str.lstrip,
    str.strip,
    lambda text: to_json(text)[1:-1],  # a tool's result is quoted as JSON by some templates
)


class Jinja(TemplateOptions):
    """A template in jinja, as transformers keeps it in tokenizer_config.json or chat_template.jinja."""

    says_tools: ClassVar[bool] = True  # where the model's own does
    kind: Literal["jinja"] = Field("jinja", description="The model's own chat template, or another one in jinja.")
    path: str | None = Field(None, description="A .jinja file to use instead of the model's own template.")
    source: str | None = Field(None, description="The template itself, instead of the model's own.")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")

    @model_validator(mode="after")
    def _one_source(self) -> Jinja:
        if self.path is not None and self.source is not None:
            raise ValueError("path and source exclude each other")
        return self

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        source, name = self._source(tokenizer)
        program = compile_template(source, name)
        return _Jinja(self, tokenizer, program, source)

    def _source(self, tokenizer: Tokenizer) -> tuple[str, str]:
        if self.source is not None:
            return self.source, "data.template.source"
        if self.path is None:
            if tokenizer.chat_template is None:
                own, text = suiting(tokenizer)
                rest = [name for name in kinds("lorikeet.data.templates") if name not in (*own, *text, "jinja")]
                raise TemplateError(
                    "the model brings no chat template",
                    given="data.template=jinja",
                    allowed=f"{' '.join([*own, *text, *rest])}; jinja with a path or a source",
                    try_=f"data.template={own[0] if own else 'chatml'}",
                )
            return tokenizer.chat_template, "the model's chat template"
        path = Path(self.path)
        try:
            return path.read_text(encoding="utf-8"), self.path
        except (OSError, UnicodeDecodeError) as error:
            names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            near = nearest(path.name, names)
            raise TemplateError(
                f"data.template.path: cannot read '{self.path}'",
                given=error,
                allowed="a jinja file in UTF-8",
                try_=str(path.parent / near) if near else None,
            ) from error


@dataclass
class _Slots:
    """The texts behind the placeholders, in order of their numbers."""

    texts: list[str] = field(default_factory=list)
    messages: list[int | None] = field(default_factory=list)  # None: a control string inside a tool's description

    def hide(self, text: str, message: int | None) -> str:
        """A placeholder for `text`; nothing for nothing, because templates ask whether a text is empty."""
        if not text:
            return ""
        self.texts.append(text)
        self.messages.append(message)
        return f"{_OPEN}{len(self.texts) - 1}{_CLOSE}"


class _Jinja(BoundTemplate):
    options: Jinja

    def __init__(self, options: Jinja, tokenizer: Tokenizer, program: jinja2.Template, source: str):
        self.program, self.tokenizer, self.source = program, tokenizer, source
        # the same few pieces of own text come again and again, and some models have thousands of control tokens
        self.cut = lru_cache(4096)(lambda text: tuple(split_control(text, tokenizer)))
        self.arguments_as_text = self._wants_text()
        super().__init__(options, tokenizer, end=self._end_token(), source=source)

    def _wants_text(self) -> bool:
        """Does this template join the arguments of a call as text, rather than write them as JSON itself?"""
        choices: tuple[Any, ...] = ({}, "{}")
        for arguments in choices:
            call = {"id": "a" * 9, "type": "function", "function": {"name": "f", "arguments": arguments}}
            probe: list[dict[str, Any]] = [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
            try:
                self._run(probe, [], False)
            except jinja2.TemplateError:
                continue
            return isinstance(arguments, str)
        return False

    def _end_token(self) -> str | None:
        """The control token this template closes a reply with: the first one behind the last reply."""
        probe = [
            {"role": "user", "content": f"{_OPEN}0{_CLOSE}"},
            {"role": "assistant", "content": f"{_OPEN}1{_CLOSE}"},
        ]
        try:
            behind = self._run(probe, [], False).rpartition(_CLOSE)[2]
        except jinja2.TemplateError:
            return None  # a template for other roles than these; a trained reply without an end is refused later
        cut = self.cut(behind)
        return next((segment.text for segment in cut if segment.control), None)

    def _run(self, messages: list[dict[str, Any]], tools: list[Any], reply: bool) -> str:
        try:
            return self.program.render(
                messages=messages,
                tools=tools or None,
                add_generation_prompt=reply,
                bos_token=self.tokenizer.bos_token or "",
                eos_token=self.tokenizer.eos_token or "",
            )
        except (jinja2.TemplateError, Inspected):
            raise
        except Exception as error:  # a template is a program of someone else's and can fail in any way
            raise jinja2.TemplateError(f"it fails: {error}") from error

    @cached_property
    def around_texts(self) -> bool:
        """Whether the template can be asked how it writes around texts that are not known yet."""
        return writes_around_texts(self.source, chat_environment())

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        messages = list(enumerate(conversation.messages))
        if any(isinstance(message.content, Hole) for _, message in messages):
            return self._around_holes(conversation, reply)
        if self.options.system and not (messages and messages[0][1].role == "system"):
            messages.insert(0, (-1, Message("system", self.options.system)))
        try:
            true = [self._message(message, message.content, None) for _, message in messages]
            rendered = self._run(true, list(conversation.tools), reply)
            for thinking in (False, True):
                slots = _Slots()
                hidden = [self._hidden(index, message, slots, thinking) for index, message in messages]
                tools = [self._guard(tool, slots) for tool in conversation.tools]
                parts = _PLACEHOLDER.split(self._run(hidden, tools, reply))
                texts = _fit(rendered, parts, slots)
                if texts is not None:
                    self._nothing_lost(conversation, slots, parts, reply)
                    return self._segments(parts, texts, slots)
        except jinja2.TemplateError as error:
            raise self.cannot(conversation, str(error)) from error
        raise self.cannot(
            conversation,
            "it changes what messages say in a way that cannot be followed",
            allowed="templates that insert each text as it is, or stripped",
        )

    def _around_holes(self, conversation: Conversation, reply: bool) -> list[Segment]:
        """The segments of a conversation whose texts are holes. Raises Inspected where they are not the same for all
        texts, or where a text is left out."""
        own_system = bool(self.options.system) and conversation.messages[0].role != "system"
        if not self.around_texts or own_system:
            raise Inspected
        # one hole each: no template in jinja knows that a question has an input
        told = [
            {"role": message.role, "content": hole(KINDS * number) if message.content else ""}
            for number, message in enumerate(conversation.messages)
        ]
        try:
            parts = HOLE.split(self._run(told, [], reply))
        except jinja2.TemplateError as error:
            raise Inspected from error
        shown = [number_of(mark) // KINDS for mark in parts[1::2]]
        if sorted(set(shown)) != [number for number, one in enumerate(told) if one["content"]]:
            raise Inspected
        segments = list(self.cut(parts[0]))
        for index, mark, own in zip(shown, parts[1::2], parts[2::2]):
            segments += [Segment(mark, message=index, part="content"), *self._with_end(list(self.cut(own)), index)]
        return segments

    def _message(
        self, message: Message, content: str, slots: _Slots | None, number: int | None = None
    ) -> dict[str, Any]:
        """The message as the template sees it. With `slots`, what it calls is hidden as its text is: a reply may be
        nothing but calls."""
        plain: dict[str, Any] = {"role": message.role, "content": content}
        for key, value in (("name", message.name), ("tool_call_id", message.tool_call_id)):
            if value is not None:
                plain[key] = value if slots is None else self._guard(value, slots)
        if message.tool_calls:
            calls = [self._call(call) for call in message.tool_calls]
            plain["tool_calls"] = [call if slots is None else self._hidden_call(call, slots, number) for call in calls]
        return plain

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        """The call with its arguments as this template takes them; quoted twice they would be learned wrong."""
        function = call.get("function", call)
        if "arguments" not in function:
            return call
        arguments = read_arguments(function["arguments"])
        if self.arguments_as_text and not isinstance(arguments, str):
            arguments = to_json(arguments)
        told = {**function, "arguments": arguments}
        return {**call, "function": told} if "function" in call else told

    def _hidden(self, index: int, message: Message, slots: _Slots, thinking: bool) -> dict[str, Any]:
        """The message with placeholders. `thinking`: the tags of a reply's thoughts stay, because templates that
        drop or move thoughts look for them."""
        number = index if index >= 0 else None
        match = _THINKING.fullmatch(message.content) if thinking and message.role == "assistant" else None
        if match is None:
            return self._message(message, slots.hide(message.content, number), slots, number)
        before, thought, between, answer = match.groups()
        content = before + slots.hide(thought, number) + between + slots.hide(answer, number)
        return self._message(message, content, slots, number)

    def _hidden_call(self, call: dict[str, Any], slots: _Slots, number: int | None) -> dict[str, Any]:
        guarded: dict[str, Any] = self._guard(call, slots)
        function = guarded.get("function", guarded)
        if isinstance(call.get("function", call).get("name"), str):
            function["name"] = slots.hide(call.get("function", call)["name"], number)
        return guarded

    def _guard(self, value: Any, slots: _Slots) -> Any:
        """`value` with control strings inside its texts hidden: what a tool says is no control token either."""
        if isinstance(value, str):
            for name in self.tokenizer.control:
                if name in value:
                    pieces = value.split(name)
                    return "".join(
                        ("" if number == 0 else slots.hide(name, None)) + self._guard(piece, slots)
                        for number, piece in enumerate(pieces)
                    )
            return value
        if isinstance(value, Mapping):
            return {self._guard(key, slots): self._guard(item, slots) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._guard(item, slots) for item in value]
        return value

    def _nothing_lost(self, conversation: Conversation, slots: _Slots, parts: list[str], reply: bool) -> None:
        """Refuse a template that leaves out a message, for example one that does not know system prompts."""
        shown = {slots.messages[int(number)] for number in parts[1::2]}
        lost = [index for index in dict.fromkeys(slots.messages) if index is not None and index not in shown]
        last = len(conversation.messages) - 1
        if lost and lost[0] != last and not reply and conversation.messages[last].role == "assistant":
            # Mistral's shows the system prompt only where a question comes last: what counts is the reply's prompt
            self.turns(replace(conversation, messages=conversation.messages[:last]), True)
        elif lost:
            role = conversation.messages[lost[0]].role
            raise self.cannot(conversation, f"it leaves out message {lost[0]} ({role})")

    def _segments(self, parts: list[str], texts: list[str], slots: _Slots) -> list[Segment]:
        """parts: own text, number, own text, number, ..., own text; texts: what stood at each number."""
        segments = list(self.cut(parts[0]))
        for number, text, own in zip(parts[1::2], texts, parts[2::2]):
            index = slots.messages[int(number)]
            segments.append(Segment(text, message=index, part="structure" if index is None else "content"))
            after = list(self.cut(own))
            if index is not None:
                after = self._with_end(after, index)
            segments += after
        return segments

    def _with_end(self, after: list[Segment], index: int) -> list[Segment]:
        """Mark everything up to and including the first stop token as what closes message `index`."""
        for stop, segment in enumerate(after):
            if segment.control and segment.text in self.stop_tokens:
                closing = [Segment(own.text, own.control, index, "end") for own in after[: stop + 1]]
                return closing + after[stop + 1 :]
        return after


def _fit(rendered: str, parts: list[str], slots: _Slots) -> list[str] | None:
    """What stands at each placeholder so that `parts` is exactly `rendered`; None where nothing fits.

    Each text may appear as it is or stripped; the search is depth first, and a wrong choice fails at the next of the
    template's own characters, so it does not branch in practice.
    """
    numbers = [int(number) for number in parts[1::2]]
    own = parts[0::2]
    if not rendered.startswith(own[0]):
        return None
    # (slot, position behind the own text before it, texts chosen so far)
    waiting: list[tuple[int, int, tuple[str, ...]]] = [(0, len(own[0]), ())]
    looks = 0
    while waiting and looks < 64 + 16 * len(numbers):
        looks += 1
        slot, at, chosen = waiting.pop()
        if slot == len(numbers):
            if at == len(rendered):
                return list(chosen)
            continue
        text = slots.texts[numbers[slot]]
        for shown in reversed(list(dict.fromkeys(strip(text) for strip in _STRIPS))):
            if rendered.startswith(shown + own[slot + 1], at):
                waiting.append((slot + 1, at + len(shown) + len(own[slot + 1]), (*chosen, shown)))
    return None
