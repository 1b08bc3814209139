"""Reading one row: its columns and texts, or an error that says which row, which column, and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from lorikeet.base.errors import DataError, nearest
from lorikeet.base.log import note
from lorikeet.base.nouns import Conversation, Message, Origin


def wrong_columns(
    row: dict[str, Any], missing: str, origin: Origin, expects: str, wanted: Iterable[str] = ()
) -> NoReturn:
    """The error of a row without the column `missing`."""
    near = nearest(missing, [column for column in row if column not in set(wanted)])
    raise DataError(
        f"{origin}: the row has no column '{missing}'",
        given=f"columns {' '.join(map(str, row)) or '(none)'}",
        allowed=expects,
        try_=f"rename the column '{near}' to '{missing}'" if near else "data.format=auto, or another format",
    )


def text(row: dict[str, Any], column: str, origin: Origin, *, empty: bool = False) -> str:
    """The string in `column`; None counts as empty. Raises DataError for another type, or for nothing where
    `empty` is False."""
    return checked(row.get(column), f"column '{column}'", origin, empty=empty)


def checked(value: object, where: str, origin: Origin, *, empty: bool = False) -> str:
    """`value` if it is text that can be used; `where` says in words where in the row it stands."""
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{origin}: {where} is not text",
            given=f"{'null' if value is None else type(value).__name__}: {value!r}"[:120],
            allowed="a string",
            try_="data.bad_rows=skip leaves such rows out and counts them",
        )
    if not empty and not value.strip():
        raise DataError(
            f"{origin}: {where} is empty",
            given=repr(value),
            allowed="some text",
            try_="data.bad_rows=skip leaves such rows out and counts them",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{origin}: {where} holds half a character",
            given=f"the lone surrogate \\u{ord(value[error.start]):04x} at character {error.start}",
            allowed="whole characters; emoji are surrogate pairs in JSON escapes",
        ) from error
    return value


def turn_list(row: dict[str, Any], column: str, origin: Origin, expects: str) -> Sequence[dict[str, Any]]:
    """The list of turns in `column`, each an object."""
    if column not in row:
        wrong_columns(row, column, origin, expects)
    turns = row[column]
    if not isinstance(turns, (list, tuple)) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(
            f"{origin}: '{column}' must be a list of turns with at least one in it",
            given=repr(turns)[:120],
            allowed=expects,
        )
    return turns


def say_unread(rows: Iterable[dict[str, Any]], column: str, known: Iterable[str | None], file: str) -> None:
    """Say which keys of the turns in `column` nothing reads: a thought in a key of its own is left out, for example."""
    told = {*known, "trained", "train", "weight"}
    lists = [turns for row in rows if isinstance(turns := row.get(column), (list, tuple))]
    found = (turn.items() for turns in lists for turn in turns if isinstance(turn, dict))
    unread = dict.fromkeys(str(key) for items in found for key, value in items if value and key not in told)
    if unread:
        note(f"{file}: not read in '{column}': {' '.join(list(unread)[:12])}{' ...' if len(unread) > 12 else ''}")


def role(name: object, aliases: dict[str, str], where: str, origin: Origin) -> str:
    """Our name for the role `name`."""
    found = aliases.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        raise DataError(
            f"{origin}: {where} has an unknown role",
            given=repr(name),
            allowed=" ".join(aliases),
            try_=nearest(str(name).lower(), aliases),
        )
    return found


def training(turn: dict[str, Any], where: str, origin: Origin) -> tuple[bool | None, float | None]:
    """What a turn says about its own learning: `trained` or `train`, and `weight`; None where it says nothing."""
    said = {key: turn[key] for key in ("trained", "train") if turn.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, bool):
            raise DataError(
                f"{origin}: {where} has a '{key}' that is not a boolean", given=repr(value), allowed="true false"
            )
    if len(set(said.values())) > 1:
        raise DataError(f"{origin}: {where} contradicts itself", given=f"{said}", allowed="one of trained and train")
    weight = turn.get("weight")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < 1e6
    ):
        raise DataError(
            f"{origin}: {where} has a 'weight' that is no loss weight", given=repr(weight), allowed="0 or more"
        )
    return next(iter(said.values()), None), None if weight is None else float(weight)


def conversation(
    messages: Sequence[Message], origin: Origin, *, reply: bool, tools: tuple[dict[str, Any], ...] = ()
) -> Conversation:
    """The messages as a Conversation. Raises DataError where a reply is needed and there is none."""
    if reply and not any(message.role == "assistant" for message in messages):
        raise DataError(
            f"{origin}: there is no assistant message, so nothing to learn from",
            given=f"roles {' '.join(message.role for message in messages)}",
            allowed="at least one assistant message",
            try_="data.bad_rows=skip leaves such rows out and counts them",
        )
    return Conversation(tuple(messages), tools, origin)


def refuse_preferences(row: dict[str, Any], origin: Origin) -> None:
    """Raise DataError for a row of preference data: training on one side of it silently would be a guess."""
    if "chosen" in row and "rejected" in row:
        raise DataError(
            f"{origin}: this is preference data, which this format does not read",
            given=f"columns {' '.join(row)}",
            allowed="one reply to each prompt",
            try_="data.format=preference   (the chosen reply is learned, the rejected one left aside)",
        )
