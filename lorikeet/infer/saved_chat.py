"""A conversation as a file: what `:save` and the web page write, what `:load` and the page read, what training reads.

A .json file is a list of rows `{"messages": [...], "model": ..., "options": {...}}`: one row, or two of one chat that
two models answered side by side. Rows with `messages` are a format of training data, so a good chat can be learned
from as it is. The options have OpenAI's names. A .md file is for reading only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorikeet.base.errors import DataError, OutputError
from lorikeet.base.files import write_file
from lorikeet.base.nouns import Message

ROLES = ("system", "user", "assistant")
EXPECTED = '[{"messages": [{"role": "user", "content": "..."}, ...]}]'


@dataclass(frozen=True)
class SavedChat:
    """`messages` may begin with one of the system; `options` are those that were set."""

    messages: Sequence[Message]
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def write_chat(path: Path, chat: SavedChat) -> None:
    """Write a .json or .md file. Raises OutputError for another extension, or where it cannot be written."""
    if path.suffix == ".json":
        messages = [{"role": message.role, "content": message.content} for message in chat.messages]
        row = {"messages": messages, "model": chat.model, "options": dict(chat.options)}
        text = json.dumps([row], ensure_ascii=False, indent=1) + "\n"
    elif path.suffix == ".md":
        names = {"system": "System", "user": "You", "assistant": chat.model or "Assistant"}
        parts = [f"**{names[message.role]}**\n\n{message.content}" for message in chat.messages]
        text = "\n\n---\n\n".join(parts) + "\n"
    else:
        raise OutputError(
            "a chat is saved as .json, which can be loaded again, or as .md", given=path, try_=f"{path.stem}.json"
        )
    try:
        write_file(path, text)
    except OSError as error:
        raise OutputError("the chat cannot be saved", given=f"{path}: {error.strerror}") from error


def read_chat(path: Path) -> SavedChat:
    """The first row of a .json or .jsonl file. Raises DataError for what is no conversation."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the chat cannot be read", given=f"{path}: {error}") from error
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = _first_line(text)
    row = read[0] if isinstance(read, list) and read else read
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise DataError(f"{path} is not a saved chat", given=text[:60], allowed=EXPECTED)
    messages = [_message(one, number, path) for number, one in enumerate(row["messages"])]
    if not messages or any(message.role == "system" for message in messages[1:]):
        raise DataError(f"{path}: a chat has messages, and only the first is of the system", allowed=EXPECTED)
    model, options = row.get("model"), row.get("options")
    return SavedChat(messages, str(model) if model else None, options if isinstance(options, dict) else {})


def _first_line(text: str) -> Any:
    """The first row of a .jsonl file, or None."""
    try:
        return json.loads(next((line for line in text.split("\n") if line.strip()), ""))  # splitlines cuts inside texts
    except (ValueError, RecursionError):
        return None


def _message(one: Any, number: int, path: Path) -> Message:
    role, content = (one.get("role"), one.get("content")) if isinstance(one, dict) else (None, None)
    if role not in ROLES or not isinstance(content, str):
        raise DataError(
            f"{path}: message {number} is none of a chat",
            given=json.dumps(one, ensure_ascii=False)[:200],
            allowed=f"a role ({' '.join(ROLES)}) and content, which is text",
        )
    return Message(role, content)
