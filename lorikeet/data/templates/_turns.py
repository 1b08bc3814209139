"""What a template writes around texts, found by asking it, and the same said to other programs.

Most templates are a few strings: what stands before the first question, with a system prompt and without one, before a
reply, between a reply and the next question, and behind the last reply. They are read off a rendered conversation of
marks, written as a chat template in jinja (vLLM, llama.cpp) and in Go (Ollama), and compared with the renderer on other
conversations. A template that is more than this has its own jinja, or none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from lorikeet.base.errors import TemplateError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._contract import Template
from lorikeet.data.templates._environment import compile_template
from lorikeet.data.templates.jinja import Jinja

_MARKS = ["Xsystemo", "Xfirsto", "Xreplyo", "Xsecondo"]  # no template says these words itself
_PROBES = (
    ("user", "What is it?"),
    ("assistant", "It is\na thing."),
    ("user", "  And  "),
    ("assistant", "{{ 'so' }} {% if %}"),
    ("user", "Ünïcode ✓"),
)


@dataclass(frozen=True)
class Turns:
    """A template as strings. `strips` are the roles whose texts it strips."""

    system: tuple[str, str] | None  # around the system prompt; the second ends where the first question begins
    first: str  # before the first question, where there is no system prompt
    ask: str  # behind a question, for the model to go on
    reply: str  # between a question and its reply: `ask`, and what the model writes before its text
    again: str  # behind a reply, before the next question
    end: str  # behind the last reply
    strips: frozenset[str] = frozenset()

    def jinja(self) -> str:
        """A chat template as tokenizer_config.json holds it."""
        questions, first = self._jinja("user", "m"), _quoted(self.first)
        system = "{%- set rest = messages -%}{{- " + first + " -}}"
        if self.system is not None:
            before, behind = map(_quoted, self.system)
            says = f"{before} + {self._jinja('system', 'messages[0]')} + {behind}"
            system = (
                "{%- if messages[0]['role'] == 'system' -%}{%- set rest = messages[1:] -%}{{- "
                f"{says} -}}}}{{%- else -%}}{system}{{%- endif -%}}"
            )
        return (
            system
            + "{%- for m in rest -%}{%- if m['role'] == 'user' -%}{%- if not loop.first -%}{{- "
            + f"{_quoted(self.again)} -}}}}{{%- endif -%}}{{{{- {questions} -}}}}"
            + f"{{%- else -%}}{{{{- {_quoted(self.reply)} + {self._jinja('assistant', 'm')} -}}}}{{%- endif -%}}"
            + f"{{%- endfor -%}}{{%- if add_generation_prompt -%}}{{{{- {_quoted(self.ask)} -}}}}"
            + f"{{%- elif messages[-1]['role'] == 'assistant' -%}}{{{{- {_quoted(self.end)} -}}}}{{%- endif -%}}"
        )

    def ollama(self, bos: str | None) -> str:
        """Ollama's TEMPLATE, in Go. `bos` is what the runner puts in front by itself."""

        def begins(text: str) -> str:
            return _go(text.removeprefix(bos) if bos else text)

        start = begins(self.first)
        if self.system is not None:
            before, behind = self.system
            start = (
                f"{{{{ if .System }}}}{begins(before)}{{{{ .System }}}}{_go(behind)}{{{{ else }}}}{start}{{{{ end }}}}"
            )
        return (
            start
            + '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}'
            + _go(self.ask)
            + '{{ else if eq .Role "assistant" }}'
            + _go(self.reply.removeprefix(self.ask))
            + "{{ .Content }}"
            + _go(self.again)
            + "{{ end }}{{ end }}"
        )

    def _jinja(self, role: str, message: str) -> str:
        return f"{message}['content']" + (" | trim" if role in self.strips else "")


def chat_template(template: Template) -> str | None:
    """A chat template in jinja that says what `template` says; None where none is known."""
    options = getattr(template, "options", None)
    if isinstance(options, Jinja):
        own: str = template.source  # type: ignore[attr-defined]
        if not options.system:
            return own
        prompt = f"[{{'role': 'system', 'content': {_quoted(options.system)}}}]"
        condition = "{%- if not messages or messages[0]['role'] != 'system' -%}"
        return f"{condition}{{%- set messages = {prompt} + messages -%}}{{%- endif -%}}{own}"
    turns = turns_of(template)
    return None if turns is None else turns.jinja()


def turns_of(template: Template) -> Turns | None:
    """The template as strings; None where these do not say what it says."""
    bare = _cut(template, ["user", "assistant", "user"], _MARKS[1:], True)
    closed = _cut(template, ["user", "assistant"], _MARKS[1:3], False)
    if bare is None or closed is None or not bare[1].startswith(bare[3]):
        return None
    headed = _cut(template, ["system", "user", "assistant", "user"], _MARKS, True)
    if headed is not None and (headed[2:] != bare[1:]):
        return None
    roles = ["system", "user", "assistant"] if headed is not None else ["user", "assistant"]
    turns = Turns(
        system=(headed[0], headed[1]) if headed is not None else None,
        first=bare[0],
        ask=bare[3],
        reply=bare[1],
        again=bare[2],
        end=closed[2],
        strips=frozenset(role for role in roles if _strips(template, role)),
    )
    return turns if _says_the_same(turns, template) else None


def _cut(template: Template, roles: Sequence[str], marks: Sequence[str], reply: bool) -> list[str] | None:
    """What stands before, between and behind the marks; None where one of them is not there."""
    rest = _rendered(template, list(zip(roles, marks)), reply)
    found = []
    for mark in marks:
        if rest is None or mark not in rest:
            return None
        before, _, rest = rest.partition(mark)
        found.append(before)
    return [*found, rest or ""]


def _strips(template: Template, role: str) -> bool:
    turns = {"system": ("system", "user"), "user": ("user",), "assistant": ("user", "assistant", "user")}[role]
    text = _rendered(template, [(one, f"  X{one}o  " if one == role else f"X{one}o") for one in turns], True)
    return text is not None and f"  X{role}o  " not in text


def _rendered(template: Template, turns: Sequence[tuple[str, str]], reply: bool) -> str | None:
    try:
        conversation = Conversation(tuple(Message(role, text) for role, text in turns))
        return "".join(segment.text for segment in template.render(conversation, reply=reply))
    except TemplateError:
        return None


def _says_the_same(turns: Turns, template: Template) -> bool:
    program = compile_template(turns.jinja(), "the chat template")
    system = [("system", "Be brief.\n")] if turns.system is not None else []
    for size in range(1, len(_PROBES) + 1):
        for said in ([*_PROBES[:size]], [*system, *_PROBES[:size]]):
            reply = said[-1][0] == "user"
            messages = [{"role": role, "content": text} for role, text in said]
            try:
                ours = program.render(messages=messages, add_generation_prompt=reply)
            except jinja2.TemplateError:
                return False
            if ours != _rendered(template, said, reply):
                return False
    return True


def _quoted(text: str) -> str:
    """A string in jinja, whose escapes are Python's."""
    return json.dumps(text, ensure_ascii=False)


def _go(text: str) -> str:
    """Text between the actions of a Go template."""
    return text.replace("{{", '{{ "{{" }}')
