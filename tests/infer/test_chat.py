"""The chat, driven by a list of lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from lorikeet import serve
from lorikeet.data.formats.auto import Auto
from lorikeet.data.rows import conversations
from lorikeet.infer.batch import Batch
from lorikeet.infer.chat import HELP, OTHER_NAMES, Chat
from lorikeet.infer.engine import Engine
from lorikeet.infer.reply import Event
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
    whole = Batch.step
    passes = 0

    def interrupted(batch: Batch) -> list[Event]:
        nonlocal passes
        passes += 1
        if passes == 4:
            raise KeyboardInterrupt
        return whole(batch)

    monkeypatch.setattr(Batch, "step", interrupted)
    chat.run(reader("hello", "again"))
    assert chat.messages[1].content == "use" and "use [stopped]" in said(chat)
    assert chat.messages[3].content == "user: hel"  # nothing of the broken reply is left in the cache


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


def test_a_message_has_several_lines(chat: Chat) -> None:
    chat.run(reader("one\\", "two", ":multi", "a", "", ":b", ":end", ":multi first", "last"))
    asked = [message.content for message in chat.messages if message.role == "user"]
    assert asked == ["one\ntwo", "a\n\n:b", "first\nlast"]


def test_ctrl_c_drops_a_message_of_several_lines(chat: Chat) -> None:
    chat.run(reader(":multi", "a", KeyboardInterrupt, "hello"))
    assert [message.content for message in chat.messages] == ["hello", "user: hel"] and "(stopped)" in said(chat)


def test_retry_answers_again_with_another_draw(engine: Engine) -> None:
    chat = Chat(engine, GenerateOptions(max_new_tokens=6, temperature=1.5, seed=3), out=StringIO())
    chat.run(reader("a", "b"))
    first = chat.messages
    chat.run(reader(":retry"))
    assert [message.content for message in chat.messages[:3]] == [message.content for message in first[:3]]
    assert chat.messages[3].content != first[3].content and len(chat.messages) == 4


def test_retry_of_a_greedy_reply_says_why_nothing_changes(chat: Chat) -> None:
    chat.run(reader(":retry", "hello", ":retry"))
    assert "(nothing was asked yet)" in said(chat) and "temperature 0 says the same again" in said(chat)
    assert len(chat.messages) == 2


def test_the_system_prompt_is_shown_and_taken_away(chat: Chat) -> None:
    chat.run(reader(":system", ":system Be brief", ":system", "x", ":system -", "x"))
    assert said(chat).count("(no system prompt)") == 2 and "system: Be brief\n" in said(chat)
    assert [message.role for message in chat.messages] == ["user", "assistant"] and chat.system is None


def test_options_are_taken_back(chat: Chat) -> None:
    chat.run(reader(":set temperature=0.5", ":conf top_k 3", ":reset", ":params"))
    assert chat.options == GenerateOptions(max_new_tokens=9) and "top_k 3\n" in said(chat)


@pytest.mark.parametrize(
    "line",
    [
        ":set seed __import__('os').mkdir('evaluated')",
        ":conf temperature=().__class__",
        ":set stop [__import__('os').mkdir('evaluated')]",
        ":set max_new_tokens 2+2",
        ":set logit_bias {",
    ],
)
def test_nothing_that_is_typed_is_evaluated(
    chat: Chat, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen's demo evaluates what stands behind `:conf`."""
    monkeypatch.chdir(tmp_path)
    before = chat.options
    chat.run(reader(line))
    assert list(tmp_path.iterdir()) == []
    assert chat.options == before or chat.options.stop == ["[__import__('os').mkdir('evaluated')]"]


def test_a_saved_chat_is_gone_on_with_and_trained_on(chat: Chat, echo: Engine, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    chat.name = "notes"
    chat.run(reader(":system Be brief", ":seed 5", "hello", f":save {file}", "more", f":save {file}"))
    other = Chat(echo, GenerateOptions(), out=StringIO())
    other.run(reader(f":load {file}"))
    assert (other.system, other.messages, other.options.seed) == ("Be brief", chat.messages, 5)
    assert other.options.max_new_tokens == 9
    row = json.loads(file.read_text())[0]
    assert row["model"] == "notes" and row["options"] == {"max_tokens": 9, "seed": 5}
    (learned,) = conversations([str(file)], Auto.model_validate({}))
    assert [message.content for message in learned.messages[1:]] == [message.content for message in chat.messages]


def test_every_option_of_the_page_is_saved_and_loaded(chat: Chat, echo: Engine, tmp_path: Path) -> None:
    page = (Path(serve.__file__).parent / "web/settings.js").read_text("utf-8")
    (more,) = re.findall(r"const MORE = (\[[^\]]*\])", page)
    names = [*json.loads(more), "temperature", "top_p", "max_tokens", "seed", "stop"]
    options = {name: "end" if name == "stop" else 1 + number for number, name in enumerate(sorted(names))}
    options |= {"top_p": 0.5, "min_p": 0.25, "presence_penalty": 1.5, "frequency_penalty": -1.5}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    (tmp_path / "page.json").write_text(json.dumps([{"messages": messages, "options": options}]))
    chat.run(reader(f":load {tmp_path / 'page.json'}", f":save {tmp_path / 'chat.json'}"))
    (row,) = json.loads((tmp_path / "chat.json").read_text())
    assert row["options"] == options | {"stop": ["end"]}, said(chat)


def test_the_first_row_of_a_jsonl_file_is_loaded_whatever_its_text_has(chat: Chat, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a\u2028b\x85c"}, {"role": "assistant", "content": "y"}]
    line = json.dumps({"messages": messages}, ensure_ascii=False)
    (tmp_path / "chats.jsonl").write_text(f"{line}\n{line}\n", "utf-8")
    chat.run(reader(f":load {tmp_path / 'chats.jsonl'}"))
    assert [message.content for message in chat.messages] == ["a\u2028b\x85c", "y"], said(chat)


def test_a_chat_is_saved_for_reading(chat: Chat, tmp_path: Path) -> None:
    chat.run(reader("hello", f":save {tmp_path / 'chat.md'}"))
    assert (tmp_path / "chat.md").read_text() == "**You**\n\nhello\n\n---\n\n**Assistant**\n\nuser: hel\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no json", "is not a saved chat"),
        ("[]", "is not a saved chat"),
        ("[" * 100_000, "is not a saved chat"),
        ('{"messages": []}', "a chat has messages"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "message 0 is none of a chat"),
        ('{"messages": [{"role": "user", "content": null}]}', "message 0 is none of a chat"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "do not take turns"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}', "only the first"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], '
         '"options": {"temperature": "hot"}}', "temperature: Input should be a valid number"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_chat_changes_nothing(chat: Chat, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "chat.json").write_text(content)
    chat.run(reader("hello", f":load {tmp_path / 'chat.json'}"))
    assert told in said(chat) and len(chat.messages) == 2 and chat.options == GenerateOptions(max_new_tokens=9)


def test_a_file_that_is_not_there_or_not_ours_is_left(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("mine")
    chat.run(reader("x", ":save", ":load", f":load {tmp_path / 'no.json'}", f":save {tmp_path / 'own.json'}",
                    f":save {tmp_path / 'a.txt'}", f":save {tmp_path / 'own.json' / 'a.json'}"))  # fmt: skip
    assert "the chat cannot be read" in said(chat) and "a file of this name already" in said(chat)
    assert "saved as .json" in said(chat) and (tmp_path / "own.json").read_text() == "mine"
    assert "the chat cannot be saved" in said(chat) and [path.name for path in tmp_path.iterdir()] == ["own.json"]


def test_the_help_names_every_command(chat: Chat) -> None:
    assert {f":{name}" for name in (*chat._commands, "set", "exit")} <= set(HELP.split())
    assert set(OTHER_NAMES.values()) <= {*chat._commands, "exit"}
