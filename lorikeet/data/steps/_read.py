"""Rows of any format to records, without the strictness of training: a step may mend what training would refuse.

Lists of turns are read loosely: any speaker, any order, empty texts. Everything else goes through its own format. What
cannot be read at all (no list, a text that is a number, half a character) is rejected with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from lorikeet.base.errors import DataError
from lorikeet.base.log import note
from lorikeet.base.nouns import Conversation, Origin
from lorikeet.data.files import Advance
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.alpaca import Alpaca
from lorikeet.data.formats.auto import Auto, detect
from lorikeet.data.formats.messages import Messages
from lorikeet.data.formats.preference import Preference
from lorikeet.data.formats.sharegpt import ShareGPT
from lorikeet.data.formats.text import Text
from lorikeet.data.steps._contract import Log
from lorikeet.data.steps._record import CALL, CALLS, ROLES, Record, Turn

_FIRST_ROWS = 8  # that a format is detected from
STEP = "read"  # the name that reading has in reports

Row = tuple[dict[str, Any], str, int, int | None]  # (row, file, number, line)


def rows_of(file: str, format: Format, advance: Advance | None = None) -> tuple[Format, Iterator[Row]]:
    """(the format that the file's first rows show, all its rows)."""
    rows = format.rows(file, advance)
    first = list(islice(rows, _FIRST_ROWS))
    settled = _settled(format, [row for row, _ in first], file)
    return settled, ((row, origin.file, origin.row, origin.line) for row, origin in chain(first, rows))


def _settled(format: Format, first: Sequence[dict[str, Any]], file: str) -> Format:
    """As training finds it, and said; but no column is left out here, so none is said to be."""
    found = detect(first) if isinstance(format, Auto) else []
    if not found:
        return format.settle(first, file)
    note(f"{file}: format {found[-1].model_dump()['kind']}")
    return found[-1] if isinstance(found[-1], (ShareGPT, Messages)) else found[-1].settle(first, file)


def records(rows: Sequence[Row], format: Format, log: Log) -> Iterator[Record]:
    """The rows as records; those that cannot be read are rejected in the log."""
    for row, file, number, line in rows:
        log.rows_in += 1
        origin = Origin(file, number, line)
        try:
            made = _record(row, format, origin)
            _whole_characters(made)
        except DataError as error:
            reason = error.what.split(": ", 1)[-1]
            bare = Record(origin, [], row, "text", "text")
            log.drop(bare, "cannot be read", reason, copy=False)
            log.entries[-1]["content"] = row
            continue
        log.rows_out += 1
        yield made


def _record(row: dict[str, Any], format: Format, origin: Origin) -> Record:
    if isinstance(format, (ShareGPT, Messages)):
        return _of_list(row, format, origin)
    # a row of instructions may have lost its answer, which the step `roles` deals with
    conversation = format.read(row, origin, reply=not isinstance(format, Alpaca))
    if isinstance(format, Alpaca):
        return _of_alpaca(row, format, conversation, origin)
    if isinstance(format, Text):
        rest = {name: value for name, value in row.items() if name != format.text}
        return Record(origin, _turns(conversation), rest, "text", format.text, ("role", "content"))
    taken = set(_texts(format.model_dump()))
    rest = {name: value for name, value in row.items() if name not in taken and name != "messages"}
    if conversation.tools:
        rest["tools"] = list(conversation.tools)
    made = Record(origin, _turns(conversation), rest, "messages", "messages", ("role", "content"))
    if isinstance(format, Preference):
        swapped = format.model_copy(update={"chosen": format.rejected, "rejected": format.chosen})
        other = _turns(swapped.read(row, origin))
        for turn in (*made.turns, *other):  # that the prompt is not learned goes without saying, in a pair
            turn.rest.pop("trained", None)
        made.pair_with(other)
        if isinstance(format.context, ShareGPT):
            made.to_layout("sharegpt")
    return made


def _of_list(row: dict[str, Any], format: ShareGPT | Messages, origin: Origin) -> Record:
    column = format.messages
    turns = row.get(column)
    if not isinstance(turns, (list, tuple)):
        raise DataError(f"{origin}: '{column}' is not a list of turns", given=type(turns).__name__)
    sharegpt = isinstance(format, ShareGPT)
    keys = ("role", "content")
    tags = _tags(format) if isinstance(format, ShareGPT) else {}
    found: list[Turn] = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise DataError(f"{origin}: turn {number} is not an object", given=type(turn).__name__)
        if number == 0 and sharegpt:
            usual = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
            keys = (format.role_tag or usual[0], format.content_tag or usual[1])  # type: ignore[union-attr]
        found.append(_turn(turn, number, keys, origin))
        if sharegpt:
            found[-1].speaker = tags.get(found[-1].speaker.lower(), found[-1].speaker)
    if not found:
        keys = ("from", "value") if sharegpt else keys
    rest = {name: value for name, value in row.items() if name != column}
    if sharegpt and isinstance(system := rest.get(format.system), str) and system.strip():  # type: ignore[union-attr]
        del rest[format.system]  # type: ignore[union-attr]
        if not found or found[0].role != "system":
            found.insert(0, Turn("system", system))
        elif found[0].content != system:
            raise DataError(f"{origin}: two different system prompts", given=system[:80])
    return Record(origin, found, rest, "sharegpt" if sharegpt else "messages", column, keys)


def _tags(format: ShareGPT) -> dict[str, str]:
    """A file's own names of speakers to those that steps know."""
    named = {"human": format.user_tag, "gpt": format.assistant_tag, CALL: format.function_tag}
    named |= {"observation": format.observation_tag, "system": format.system_tag}
    return {tag.lower(): speaker for speaker, tag in named.items() if tag is not None}


def _turn(turn: dict[str, Any], number: int, keys: tuple[str, str], origin: Origin) -> Turn:
    speaker, words = turn.get(keys[0]), turn.get(keys[1])
    if not isinstance(speaker, str):
        raise DataError(f"{origin}: turn {number} does not say who speaks in '{keys[0]}'", given=repr(speaker)[:80])
    rest = {name: value for name, value in turn.items() if name not in keys}
    if isinstance(words, list) and all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in words):
        words = "".join(one["text"] for one in words)  # OpenAI's parts
    silent = keys[1] == "content" and ROLES.get(speaker.lower()) in ("system", "user", "tool")  # as training reads them
    if words is None and keys[1] in turn and (silent or any(rest.get(key) for key in CALLS)):
        words = ""
    if not isinstance(words, str):
        raise DataError(f"{origin}: turn {number} has no text in '{keys[1]}'", given=repr(words)[:80])
    return Turn(speaker, words, "", rest)


def _of_alpaca(row: dict[str, Any], format: Alpaca, conversation: Conversation, origin: Origin) -> Record:
    turns = _turns(conversation)
    named = (format.prompt, format.query, format.response, format.system, format.history)
    asked = next(turn for turn in reversed(turns) if turn.role == "user")
    instruction, more = (value if isinstance(value := row.get(name), str) else "" for name in named[:2])
    asked.content, asked.input = instruction, more
    rest = {name: value for name, value in row.items() if name not in named}
    return Record(origin, turns, rest, "alpaca", "conversations", ("from", "value"))


def _turns(conversation: Conversation) -> list[Turn]:
    found = []
    for message in conversation.messages:
        told: dict[str, Any] = {"trained": message.trained, "weight": message.weight, "name": message.name}
        told |= {"tool_call_id": message.tool_call_id, "tool_calls": list(message.tool_calls) or None}
        kept = {name: value for name, value in told.items() if value is not None}
        found.append(Turn(message.role, message.content, "", kept))
    return found


def _whole_characters(record: Record) -> None:
    for number, turn in enumerate((*record.turns, *record.rejected)):
        for text in (turn.speaker, turn.content, turn.input):
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise DataError(f"{record.origin}: turn {number} holds half a character", given=error) from None


def _texts(options: dict[str, Any]) -> Iterator[str]:
    for value in options.values():
        if isinstance(value, dict):
            yield from _texts(value)
        elif isinstance(value, str):
            yield value
