"""Most keys of another system mean one option of ours, or nothing here: those stand in tables, and this reads them.

A table is {their key: row}. A row is `to(option)`, `differs(why)`, `not_needed(why)`, or `by_hand(options)` for keys
that the system's own code deals with (the row names the options it may set, so that a test can check them all).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorikeet.base.kinds import kinds
from lorikeet.base.option_fields import choices, default_of, find, kinds_of
from lorikeet.config import Recipe
from lorikeet.migrate._contract import Content, Translation

Kind = Literal["number", "whole", "flag", "text", "words"]


@dataclass(frozen=True)
class Row:
    """What becomes of one key."""

    status: Literal["to", "differs", "not needed", "by hand"]
    options: tuple[str, ...] = ()
    kind: Kind = "text"
    why: str = ""
    harmless: tuple[Any, ...] = ()  # values that change nothing, as lower-case text


Table = Mapping[str, Row]
REMOTE_CODE = "native families run no code of a model; where there is no other way, model.trust_remote_code does"
_SILENT = ("", "false", "none", "0", "0.0", "[]", "{}", "no", "null")


def to(option: str, kind: Kind) -> Row:
    """The key is `option` of ours under another name."""
    return Row("to", (option,), kind)


def differs(why: str, *harmless: object) -> Row:
    """No equivalent, and the run comes out otherwise, unless the value is off or one of `harmless`."""
    return Row("differs", why=why, harmless=tuple(str(value).lower() for value in harmless))


def not_needed(why: str) -> Row:
    """No equivalent, and none is needed."""
    return Row("not needed", why=why)


def by_hand(*options: str) -> Row:
    """The system's own code reads it and may set these options."""
    return Row("by hand", options)


def apply(table: Table, translation: Translation, prefixes: Table | None = None) -> None:
    """Carry over every key of the content that a row speaks of and nobody has dealt with yet.

    `prefixes`: rows for all keys that begin so, where the table has none for the key itself."""
    content = translation.content
    for key, value in content.values.items():
        row = table.get(key) or next((row for prefix, row in (prefixes or {}).items() if key.startswith(prefix)), None)
        if row is None or value is None or key in translation.seen or row.status == "by hand":
            continue
        if row.status == "to":
            read: Callable[[str], Any] = getattr(content, row.kind)
            translation.set(row.options[0], read(key), key)
        elif row.status == "not needed":
            translation.leave("not needed", key, row.why)
        elif str(value).lower() in _SILENT + row.harmless:
            translation.seen.add(key)
        else:
            translation.leave("differs", key, row.why)


def write_defaults(defaults: Mapping[str, tuple[str, Any]], translation: Translation) -> None:
    """Where the source is silent, write its default down if ours is another. `defaults`: option -> (key, value)."""
    for option, (key, value) in defaults.items():
        path = tuple(option.split("."))
        if path[0] == "adapter" and ("adapter", "path") in translation.settings:
            continue  # its folder says it
        if find(Recipe, path, plain(translation))[0] is None:
            continue  # an option of another kind than the one chosen
        if path not in translation.settings and value != our_default(option, translation):
            translation.set(option, value, "", f"{translation.system}'s default for {key}")


def our_default(option: str, translation: Translation) -> Any:
    """The default of an option of ours, below the kinds chosen so far."""
    field, _ = find(Recipe, tuple(option.split(".")), plain(translation))
    return None if field is None else default_of(field)


def plain(translation: Translation) -> dict[str, Any]:
    """The settings as the tree of values that a recipe file holds, sections in the recipe's order."""
    values: dict[str, Any] = {}
    order = list(Recipe.model_fields)
    for path in sorted(translation.settings, key=lambda path: (*order, path[0]).index(path[0])):
        node = values
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = translation.settings[path].value
    return values


def option_choices(option: str) -> list[str]:
    """The words an option of ours admits, or its kinds: option_choices("train.optim")."""
    field, _ = find(Recipe, tuple(option.split(".")), {})
    assert field is not None, option
    return list(kinds_of(field)) or choices(field)


def first_kind(package: str, wanted: Sequence[str]) -> str | None:
    """The first of `wanted` that is a kind in `lorikeet.<package>`: later kinds are picked up by being there."""
    there = kinds(f"lorikeet.{package}")
    return next((name for name in wanted if name in there), None)


def devices_note(content: Content) -> str:
    """For a command line whose launcher starts several processes."""
    return f"x {content.devices} devices" if content.devices > 1 else ""
