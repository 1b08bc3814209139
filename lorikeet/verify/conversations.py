"""Conversations that templates and tokenizers trip over, for proofs that two renderings are the same."""

from __future__ import annotations

from collections.abc import Sequence

from lorikeet.base.nouns import Conversation, Message

_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
)


def adversarial(control: Sequence[str]) -> dict[str, Conversation]:
    """Conversations by what is hard about them; `control` are names of control tokens, to stand in texts."""
    marks = " ".join(control[:6]) or "</s>"
    pairs = [("user", "Hi."), ("assistant", "Hello!")]
    return {
        "one question": _talk(("user", "Hi.")),
        "system": _talk(("system", "Be brief."), ("user", "Hi.")),
        "answered": _talk(*pairs),
        "system, answered": _talk(("system", "Be brief."), *pairs),
        "three turns": _talk(*pairs, ("user", "And now?"), ("assistant", "Fine."), ("user", "Bye.")),
        "system, turns": _talk(("system", "Be brief."), *pairs, ("user", "And now?")),
        "twelve turns": _talk(*[pair for at in range(6) for pair in (("user", f"q{at}"), ("assistant", f"a {at}"))]),
        "empty question": _talk(("user", ""), ("assistant", "What?")),
        "empty reply": _talk(("user", "Say nothing."), ("assistant", ""), ("user", "Thanks.")),
        "empty system": _talk(("system", ""), ("user", "Hi.")),
        "white space": _talk(("user", " \n "), ("assistant", "\t"), ("user", "x")),
        "spaces around": _talk(("system", "  s "), ("user", "  q \n"), ("assistant", " a  "), ("user", "\n r ")),
        "line ends": _talk(("user", "a\r\nb\n\n\nc\n"), ("assistant", "\n\nd\n"), ("user", "e")),
        "unicode": _talk(("user", "naïve e\u0301 🦜\u200d‽ \u00a0"), ("assistant", "漢字 ü"), ("user", "日本語")),
        "control strings": _talk(("user", f"What is {marks}?"), ("assistant", f"A mark: {marks}"), ("user", marks)),
        "braces": _talk(("user", "{{ messages }} {% if %} {# #}"), ("assistant", '{"a": "\\"b\\""}'), ("user", "%}")),
        "markup": _talk(("user", "<b>&amp; 'x' \"y\""), ("assistant", "```py\nx = 1\n```"), ("user", "<tool_call>")),
        "a thought": _talk(("user", "q"), ("assistant", "<think>\nhm\n</think>\n\na"), ("user", "r")),
        "a thought, last": _talk(("user", "q"), ("assistant", "<think>\nhm\n</think>\n\na")),
        "two questions": _talk(("user", "One."), ("user", "Two.")),
        "two replies": _talk(("user", "q"), ("assistant", "a"), ("assistant", "b")),
        "reply first": _talk(("assistant", "Welcome."), ("user", "Hi.")),
        "system later": _talk(("user", "q"), ("system", "s"), ("assistant", "a")),
        "tools": Conversation((Message("user", "Wetter in Köln?"),), _TOOLS),
        "a call": Conversation((Message("user", "Wetter?"), _call()), _TOOLS),
        "a result": Conversation((Message("user", "Wetter?"), _call(), _result()), _TOOLS),
        "said after": Conversation((Message("user", "q"), _call(), _result(), Message("assistant", "21.")), _TOOLS),
    }


def harmless(conversation: Conversation, control: Sequence[str]) -> Conversation:
    """The same with a word in the place of each control string."""
    messages = []
    for message in conversation.messages:
        text = message.content
        for name in sorted(control, key=len, reverse=True):
            text = text.replace(name, "x")
        messages.append(Message(message.role, text, tool_calls=message.tool_calls, tool_call_id=message.tool_call_id))
    return Conversation(tuple(messages), conversation.tools)


def _talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in turns))


def _call() -> Message:
    function = {"name": "weather", "arguments": {"city": "Köln"}}
    return Message("assistant", "", tool_calls=({"id": "a1b2c3d4e", "type": "function", "function": function},))


def _result() -> Message:
    return Message("tool", '{"celsius": 21}', tool_call_id="a1b2c3d4e")
