"""The chat, driven by a list of lines."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

import pytest

from lorikeet.infer.chat import Chat
from lorikeet.infer.engine import Engine
from lorikeet.infer.sampling import GenerateOptions


def reader(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """Types the lines one after the other, then Ctrl-D; an exception class is a key."""
    waiting = iter(lines)

    def read(_prompt: str) -> str:
        line = next(waiting, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


@pytest.fixture
def chat(echo: Engine) -> Chat:
    return Chat(echo, GenerateOptions(max_new_tokens=9), out=StringIO())


def said(chat: Chat) -> str:
    assert isinstance(chat.out, StringIO)
    return chat.out.getvalue()


def test_a_reply_is_printed_and_remembered_for_the_next_turn(chat: Chat) -> None:
    chat.run(reader("hello", "again"))
    assert [(message.role, message.content) for message in chat.messages] == [
        ("user", "hello"), ("assistant", "user: hel"), ("user", "again"), ("assistant", "user: hel"),
    ]  # fmt: skip
    assert said(chat).count("user: hel\n") == 2


def test_a_system_prompt_leads_and_clear_forgets_the_rest(chat: Chat) -> None:
    chat.run(reader("hello", ":system Be brief", "hello", ":clear", "x"))
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[1].content == "system: B"
    assert "(forgotten)" in said(chat) and "(system prompt set)" in said(chat)


def test_history_and_help(chat: Chat) -> None:
    chat.run(reader("hello", ":history", ":help"))
    assert "user: hello\nassistant: user: hel\n" in said(chat)
    assert all(name in said(chat) for name in (":clear", ":history", ":system", ":seed", ":set", ":exit"))


def test_options_are_shown_set_and_checked(chat: Chat) -> None:
    chat.run(reader(":seed", ":seed 5", ":set temperature 0.7", ":set stop a|b"))
    chat.run(reader(":set top_p 3", ":set tempratur 1", ":set"))
    assert (chat.options.seed, chat.options.temperature, chat.options.stop) == (5, 0.7, ["a", "b"])
    assert chat.options.top_p == 1.0 and "top_p: Input should be less than or equal to 1" in said(chat)
    assert "unknown option tempratur, did you mean temperature?" in said(chat)
    assert "seed 0\n" in said(chat) and "max_new_tokens 9\n" in said(chat)


def test_unknown_commands_and_empty_lines(chat: Chat) -> None:
    chat.run(reader("", "   ", ":hlep", ":xyzzy"))
    assert "unknown command :hlep, did you mean :help?" in said(chat) and ":xyzzy, see :help" in said(chat)
    assert chat.messages == []


@pytest.mark.parametrize("word", [":exit", ":quit", ":q"])
def test_exit_leaves(chat: Chat, word: str) -> None:
    chat.run(reader(word, "never read"))
    assert chat.messages == []


def test_ctrl_c_at_the_prompt_does_not_leave(chat: Chat) -> None:
    chat.run(reader(KeyboardInterrupt, "hello"))
    assert "(:exit leaves)" in said(chat) and len(chat.messages) == 2


def test_ctrl_c_stops_a_reply_and_keeps_what_was_said(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = chat.engine.generate

    def interrupted(requests: list):
        for number, event in enumerate(whole(requests)):
            if number == 3:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(chat.engine, "generate", interrupted)
    chat.run(reader("hello"))
    assert chat.messages[-1].content == "use" and "use [stopped]" in said(chat)


def test_a_conversation_that_fills_the_context_is_an_error_in_words_and_the_chat_goes_on(engine: Engine) -> None:
    chat = Chat(engine, GenerateOptions(max_new_tokens=2), out=StringIO())
    chat.run(reader("x" * 200, ":seed"))
    assert "context of 96 tokens" in said(chat) and ":clear" in said(chat) and "seed 0" in said(chat)
    assert chat.messages == []


def test_turns_of_one_seed_are_not_the_same_draw(engine: Engine) -> None:
    """The turn is part of the seed; the same conversation with the same seed is the same again."""

    def replies() -> list[str]:
        chat = Chat(engine, GenerateOptions(max_new_tokens=6, temperature=1.5, seed=3), out=StringIO())
        chat.run(reader("a", "a"))
        return [message.content for message in chat.messages if message.role == "assistant"]

    first = replies()
    assert first == replies() and first[0] != first[1]
