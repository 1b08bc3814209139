"""Calls of tools, read back from what a model writes: the reverse of what a template makes of them.

No template says how its calls are read. A call with a known name and arguments is rendered, as a reply that is
learned; what stands around them is the form. So whatever a template can teach can be read, a template of one's own
too, and a form that cannot be read back is known before a reply is made. Two shapes are known: an object of JSON
(between tags, in a list, or bare), and ReAct's lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorikeet.base.errors import TemplateError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.layout import lay_out
from lorikeet.data.templates._contract import Template
from lorikeet.data.templates._environment import to_json
from lorikeet.data.templates._thinking import CLOSE
from lorikeet.data.templates._tools import described, read_arguments

_NAME, _ARGUMENTS = "probe_name", {"probe_key": "probe_value"}
_ACTION = re.compile(r"^[ \t]*Action:[ \t]*(\S[^\n]*?)[ \t]*\n[ \t]*Action Input:", re.MULTILINE)
_FINAL = "Final Answer:"


@dataclass(frozen=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class Called:
    """A piece of call `index`: its first has the name; the arguments' JSON comes in pieces. `done` ends it."""

    index: int
    name: str | None = None
    arguments: str = ""
    done: bool = False


Piece = Said | Called


@dataclass(frozen=True)
class Forced:
    """How to make the model call: what the reply begins with, and a grammar (Lark, as llguidance reads it) for the
    rest of it."""

    begins: str
    grammar: str


class CallReader(Protocol):
    """Reads one reply as it comes."""

    def feed(self, text: str) -> list[Piece]: ...
    def end(self) -> list[Piece]:
        """What was held back: nothing follows any more."""
        ...


class CallForm(Protocol):
    """How a template writes calls."""

    def reader(self, names: Collection[str]) -> CallReader: ...
    def forced(self, tools: Sequence[Mapping[str, Any]]) -> Forced: ...


def call_form(template: Template) -> CallForm | None:
    """The form of `template`'s calls; None where it has none, or one that cannot be read."""
    tool = {"name": _NAME, "description": "", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "probe0000", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
    asked = (Message("user", "q"), Message("assistant", "", tool_calls=(call,)))
    try:
        layout = lay_out(Conversation(asked, ({"type": "function", "function": tool},)), template, {1})[-1]
    except TemplateError:
        return None
    control, text = template.tokenizer.control, ""
    for one in layout.segments:
        if one.reply and not (one.control and control[one.text] in template.stop_ids):
            text += one.text
    for stop in template.stop_strings:
        text = text.removesuffix(stop)
    text = text.rpartition(CLOSE)[2]  # behind a thought
    form = _json_form(text)
    if form is None and _ACTION.search(text):
        return ReactForm()
    return form


# ------------------------------------------------------------------------------------------------- an object of JSON


@dataclass(frozen=True)
class JsonForm:
    """`opening`, an object with a name and arguments (or a list of them), `closing`."""

    opening: str
    closing: str
    name: str  # the object's keys
    arguments: str
    quoted: bool  # the arguments are a string of JSON
    extra: str = ""  # what the object says besides, e.g. Mistral's id

    @property
    def mark(self) -> str:
        """What tells that a call begins; nothing where a call is the whole reply."""
        return self.opening.strip().removesuffix("[").strip()

    @property
    def end_mark(self) -> str:
        return self.closing.strip().removeprefix("]").strip()

    def reader(self, names: Collection[str]) -> CallReader:
        return _JsonReader(self, names)

    def before(self, name: str) -> str:
        """The object as far as its arguments."""
        return "{" + f"{json.dumps(self.name)}: {to_json(name)}, {json.dumps(self.arguments)}: "

    def forced(self, tools: Sequence[Mapping[str, Any]]) -> Forced:
        begins = self.opening[: self.opening.find(self.mark) + len(self.mark)] if self.mark else ""
        before, behind = self.opening[len(begins) :], self.closing
        rules, ways = [], []
        for number, (name, schema) in enumerate(signatures(tools)):
            ways.append(f"{literal(before + self.before(name))} args_{number} {literal(self.extra + '}' + behind)}")
            rules.append(f"args_{number}: %json {json.dumps(schema)}")
        return Forced(begins, "start: " + " | ".join(ways) + "\n" + "\n".join(rules) + "\n")


def _json_form(text: str) -> JsonForm | None:
    """The form in which `text` holds the probe's call."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, end = decoder.raw_decode(text, found.start())
        except ValueError:
            continue
        name = next((key for key, one in value.items() if one == _NAME), None)
        told = next((key for key, one in value.items() if read_arguments(one) == _ARGUMENTS), None)
        if name is not None and told is not None:
            rest = {key: one for key, one in value.items() if key not in (name, told)}
            extra = "".join(f", {json.dumps(key)}: {to_json(one)}" for key, one in rest.items())
            return JsonForm(text[: found.start()], text[end:], name, told, isinstance(value[told], str), extra)
    return None


class _JsonReader:
    """Follows a reply: text, a call's object, text ..."""

    def __init__(self, form: JsonForm, names: Collection[str]):
        self.form, self.names = form, names
        self.rest, self.raw = "", ""  # not read yet; read since the mark, for what turns out to be no call
        self.inside = not form.mark
        self.object: _Object | None = None
        self.count, self.begun, self.sent = 0, False, 0
        self.plain = False  # what looked like a call was none: the rest is text

    def feed(self, text: str) -> list[Piece]:
        self.rest += text
        out: list[Piece] = []
        while self.rest and self._step(out):
            pass
        return out

    def end(self) -> list[Piece]:
        out: list[Piece] = []
        if self.begun:  # cut short in the middle of its arguments
            out.append(Called(self.count, done=True))
        elif self.object is not None:
            self._say(out, self.raw + self.object.text + self.rest)
        elif not self.inside and (self.rest.strip() or not self.count):
            self._say(out, self.rest)
        elif self.inside and not self.count:
            self._say(out, self.raw + self.rest)
        self.rest, self.raw, self.begun, self.object = "", "", False, None
        return out

    def _say(self, out: list[Piece], text: str) -> None:
        if text:
            out.append(Said(text))

    def _step(self, out: list[Piece]) -> bool:
        """Read a piece of what is there; False where more has to come."""
        if self.plain:
            self._say(out, self.rest)
            self.rest = ""
            return False
        if not self.inside:
            return self._outside(out)
        return self._in_object(out) if self.object is not None else self._between()

    def _outside(self, out: list[Piece]) -> bool:
        mark = self.form.mark
        at = self.rest.find(mark)
        if at >= 0:
            self._say(out, self.rest[:at].rstrip())  # the line end before a call is the form's
            self.raw, self.rest, self.inside = mark, self.rest[at + len(mark) :], True
            return True
        keep = next((size for size in range(len(mark) - 1, 0, -1) if self.rest.endswith(mark[:size])), 0)
        ready = self.rest[: len(self.rest) - keep].rstrip()
        self._say(out, ready)
        self.rest = self.rest[len(ready) :]
        return False

    def _between(self) -> bool:
        """Behind the mark, or behind an object: spaces, commas and brackets, then `{` or the form's end."""
        stripped = self.rest.lstrip(" \t\r\n,[]")
        if not stripped:
            return False
        self.raw += self.rest[: len(self.rest) - len(stripped)]
        self.rest = stripped
        mark, end = self.form.mark, self.form.end_mark
        if stripped[0] == "{":
            self.object, self.begun, self.sent = _Object(), False, 0
        elif end and stripped.startswith(end):
            self.raw, self.rest, self.inside = "", stripped[len(end) :], False
        elif mark and stripped.startswith(mark):  # the next call, where the one before has no end
            self.rest = stripped[len(mark) :]
        elif any(one.startswith(stripped) for one in (mark, end)):
            return False
        elif self.count and mark:  # text behind the calls
            self.inside, self.raw = False, ""
        else:
            self.plain, self.rest, self.raw, self.inside = True, self.raw + self.rest, "", False
        return True

    def _in_object(self, out: list[Piece]) -> bool:
        assert self.object is not None
        one = self.object
        self.rest = self.rest[one.more(self.rest) :]
        name, told = one.value(self.form.name), one.span(self.form.arguments)
        known = isinstance(name, str) and (bool(self.form.mark) or name in self.names)
        if known and told is not None and not self.form.quoted and one.text[told[0]] == "{":
            if not self.begun:
                self.begun, self.sent = True, told[0]
                out.append(Called(self.count, str(name)))
            if told[1] > self.sent:
                out.append(Called(self.count, arguments=one.text[self.sent : told[1]]))
                self.sent = told[1]
        if one.closed:
            self._close(out, str(name) if known else None)
        return one.closed

    def _close(self, out: list[Piece], name: str | None) -> None:
        """The object is whole; `name` is the tool's, None where it calls none."""
        assert self.object is not None
        if name is None:
            self._say(out, self.raw + self.object.text)
            self.plain, self.inside = True, False
        elif self.begun:
            out.append(Called(self.count, done=True))
        else:
            told = read_arguments(self.object.value(self.form.arguments, default={}))
            said = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
            out.append(Called(self.count, name, said, done=True))
        self.count += name is not None
        self.object, self.begun, self.raw = None, False, ""


class _Object:
    """An object of JSON as it comes: where the values of its own keys stand."""

    def __init__(self) -> None:
        self.text, self.depth, self.closed = "", 0, False
        self.string, self.escaped, self.string_from = False, False, 0
        self.key: str | None = None
        self.open = False  # behind the key's colon
        self.spans: dict[str, list[int]] = {}  # key -> [begin, end so far]
        self.whole: set[str] = set()

    def more(self, text: str) -> int:
        """Read on, at most to the object's end; returns how many characters were taken."""
        start = len(self.text)
        self.text += text
        for at in range(start, len(self.text)):
            self._read(self.text[at], at)
            if self.depth == 0:
                self.closed, self.text = True, self.text[: at + 1]
                return at + 1 - start
        return len(text)

    def _read(self, char: str, at: int) -> None:
        in_string = self.string
        if in_string:
            self._in_string(char, at)
        elif char == '"':
            self.string, self.string_from = True, at
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1
        own = self.depth <= 1 and not in_string
        if self.depth == 0 or (own and char == ","):
            if self.key is not None:
                self.whole.add(self.key)
            self.key, self.open = None, False
        elif own and char == ":" and self.key is not None and not self.open:
            self.open = True
            self.spans.pop(self.key, None)
        elif self.open and self.key is not None and not (own and char.isspace()):
            self.spans.setdefault(self.key, [at, at])[1] = at + 1

    def _in_string(self, char: str, at: int) -> None:
        if self.escaped:
            self.escaped = False
        elif char == "\\":
            self.escaped = True
        elif char == '"':
            self.string = False
            if self.depth == 1 and not self.open:
                self.key = str(read_arguments(self.text[self.string_from : at + 1]))

    def span(self, key: str) -> tuple[int, int] | None:
        """Where the value of `key` stands, as far as it has come."""
        begin, end = self.spans.get(key, (-1, -1))
        return (begin, end) if begin >= 0 else None

    def value(self, key: str, default: Any = None) -> Any:
        """The value of `key`, once it is whole."""
        span = self.span(key)
        return read_arguments(self.text[span[0] : span[1]]) if span and key in self.whole else default


# -------------------------------------------------------------------------------------------------------------- ReAct


@dataclass(frozen=True)
class ReactForm:
    """Thought: ..., Action: a tool, Action Input: its arguments; or Thought: ..., Final Answer: ..."""

    def reader(self, names: Collection[str]) -> CallReader:
        return _ReactReader()

    def forced(self, tools: Sequence[Mapping[str, Any]]) -> Forced:
        rules, ways = [], []
        for number, (name, schema) in enumerate(signatures(tools)):
            told = f"\nAction: {name}\nAction Input: "
            ways.append(f"{literal(told)} args_{number}")
            rules.append(f"args_{number}: %json {json.dumps(schema)}")
        first = "start: THOUGHT (" + " | ".join(ways) + ")\nTHOUGHT: /[^\\n]{0,120}/\n"
        return Forced("", first + "\n".join(rules) + "\n")


class _ReactReader:
    """Holds a thought back until it is followed by an action or by the answer."""

    def __init__(self) -> None:
        self.rest, self.mode, self.said = "", "", False

    def feed(self, text: str) -> list[Piece]:
        self.rest += text
        out: list[Piece] = []
        if not self.mode:
            action, final = _ACTION.search(self.rest), self.rest.find(_FINAL)
            if action is not None and not 0 <= final < action.start():
                thought = self.rest[: action.start()].strip().removeprefix("Thought:").strip()
                out += [Said(thought)] if thought else []
                out.append(Called(0, action[1]))
                self.mode, self.rest = "call", self.rest[action.end() :]
            elif final >= 0:
                self.mode, self.rest = "answer", self.rest[final + len(_FINAL) :]
        if self.mode:
            self.rest = self.rest if self.said else self.rest.lstrip()
            ready = self.rest.rstrip()
            if ready:
                out.append(Said(ready) if self.mode == "answer" else Called(0, arguments=ready))
                self.rest, self.said = self.rest[len(ready) :], True
        return out

    def end(self) -> list[Piece]:
        if self.mode == "call":
            return [Called(0, done=True)]
        rest, self.rest = self.rest.strip() if self.mode == "" else "", ""
        return [Said(rest)] if rest else []


def signatures(tools: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """(name, schema of the arguments) of each tool."""
    functions = [described(tool)["function"] for tool in tools]
    return [(str(one["name"]), one.get("parameters") or {"type": "object"}) for one in functions]


def literal(text: str) -> str:
    """`text` in a grammar's rule."""
    return json.dumps(text, ensure_ascii=False) if text else ""
