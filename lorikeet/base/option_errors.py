"""What pydantic found wrong with a recipe, said in four lines with the place where it was written.

RecipeError: adapter.r: out of range
  given    0   (recipe.yaml:4)
  allowed  a whole number >= 1
  try      adapter.r=8
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.option_fields import (
    Key,
    accepts,
    as_yaml,
    assignment,
    choices,
    default_of,
    example,
    find,
    holds_options,
    in_words,
    keys_below,
    kinds_of,
    plain_types,
)
from lorikeet.base.options import Options
from lorikeet.base.yaml_lines import Tree

_UNKNOWN, _MISSING = "extra_forbidden", "missing"
_LARGEST = (1 << 63) - 1  # what a whole number can be in a tensor, in a file, in C++
_RANGE = re.compile(r"greater_than|less_than|multiple_of|finite_number|too_short|too_long")


@dataclass
class _Trouble:
    """One thing wrong; a union of types reports each of its members, which are one trouble."""

    key: Key
    types: list[str] = field(default_factory=list)
    message: str = ""
    context: dict[str, Any] = field(default_factory=dict)


def explain(error: ValidationError, top: type[Options], tree: Tree, below: Key = ()) -> RecipeError:
    """The first of the troubles (unknown keys, then by line), and how many more there are.

    `below` is the section that was validated where it was not the whole of `tree`."""
    troubles = _collect(error, tree, below)
    first = min(troubles, key=lambda one: (_UNKNOWN not in one.types, _line(tree.place(one.key))))
    said = _say(first, top, tree)
    if len(troubles) > 1:
        what = f"{said.what}   (and {len(troubles) - 1} more)"
        return RecipeError(what, given=said.given, allowed=said.allowed, try_=said.try_)
    return said


def check_numbers(top: type[Options], tree: Tree) -> None:
    """Raise RecipeError for what pydantic would take for a number and nothing can use as one: `true`, which it reads
    as 1, and whole numbers of more than 64 bits, in quotes too."""
    for key, value in leaves(tree.values):
        if not isinstance(value, int | float | str):
            continue
        option, _ = find(top, key, tree.values)
        if option is None:
            continue
        types = plain_types(option)
        if isinstance(value, bool):
            numbers = int in types or float in types
            if not accepts(option, bool) or (numbers and bool not in types and Any not in types):
                raise _wrong(key, "has the wrong type", top, tree)
        elif int in types and (isinstance(value, int | float) or str not in types) and _is_beyond(value):
            raise _wrong(key, "out of range, with more than 64 bits", top, tree)


def _is_beyond(value: float | str) -> bool:
    try:
        number = value if isinstance(value, int) else float(value)
    except ValueError:  # a text that is no number
        return False
    return abs(number) > _LARGEST and value not in (math.inf, -math.inf)  # an infinite one is out of any range


def leaves(node: Any, key: Key = ()) -> list[tuple[Key, Any]]:
    """Every plain value under `node` with its key."""
    if isinstance(node, dict):
        return [leaf for name, below in node.items() for leaf in leaves(below, (*key, name))]
    if isinstance(node, list):
        return [leaf for index, below in enumerate(node) for leaf in leaves(below, (*key, index))]
    return [(key, node)]


def _collect(error: ValidationError, tree: Tree, below: Key) -> list[_Trouble]:
    found: dict[Key, _Trouble] = {}
    for one in error.errors(include_url=False):
        key = _key(below + one["loc"], one["type"], tree.values)
        trouble = found.setdefault(key, _Trouble(key, message=one["msg"], context=dict(one.get("ctx", {}))))
        trouble.types.append(one["type"])
    # a member of a union that looked deeper into the value knows more than one that refused it whole
    deepest = [key for key in found if not any(other[: len(key)] == key for other in found if other != key)]
    return [found[key] for key in deepest]


def _key(location: Key, kind: str, values: Any) -> Key:
    """pydantic's location without the names of union members, which are not keys of the recipe."""
    key: list[str | int] = []
    node = values
    for index, part in enumerate(location):
        held = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if held:
            node = node[part]
            key.append(part)
        elif kind == _MISSING and index == len(location) - 1:
            key.append(part)
    return tuple(key)


def _line(place: str) -> int:
    number = place.rsplit(":", 1)[-1]
    return int(number) if number.isdigit() else 0


def _say(trouble: _Trouble, top: type[Options], tree: Tree) -> RecipeError:
    key, dotted = trouble.key, ".".join(map(str, trouble.key))
    if _UNKNOWN in trouble.types:
        return _unknown(key, top, tree)
    if "recipe_error" in trouble.types:
        context = trouble.context
        what, proposal = f"{dotted}: {context['what']}", context.get("try")
        given = f"{as_yaml(context.get('given'))}   ({tree.place((*key, 'kind'))})"
        proposal = assignment((*key, "kind"), proposal) if proposal else None
        return RecipeError(what, given=given, allowed=context.get("allowed"), try_=proposal)
    if _MISSING in trouble.types:
        return _wrong(key, "is missing", top, tree)
    if trouble.types in (["value_error"], ["assertion_error"]):
        return _wrong(key, str(trouble.context.get("error", trouble.message)), top, tree)
    if all(_RANGE.search(kind) for kind in trouble.types):
        return _wrong(key, "out of range", top, tree)
    if trouble.types == ["literal_error"]:
        return _wrong(key, "is not one of the choices", top, tree)
    return _wrong(key, "has the wrong type", top, tree, trouble.message)


def _unknown(key: Key, top: type[Options], tree: Tree) -> RecipeError:
    *section, name = key
    holder, classes = find(top, tuple(section), tree.values)
    others = {} if holder is None or len(classes) != 1 else kinds_of(holder)
    others = {kind: one for kind, one in others.items() if name in one.model_fields}
    if others:
        return _of_another_kind(key, classes[0], others, tree)
    siblings = list(dict.fromkeys(option for one in classes or [top] for option in one.model_fields))
    value = _value(tree.values, key)
    everywhere = [known for known in keys_below(top) if isinstance(value, dict) or not _is_section(top, known)]
    elsewhere = [known for known in everywhere if known.rsplit(".", 1)[-1] == name]
    dotted = ".".join(map(str, key))
    close = nearest(str(name), siblings)
    proposal = ".".join(map(str, (*section, close))) if close else nearest(dotted, everywhere)
    proposal = elsewhere[0] if elsewhere else proposal
    return RecipeError(
        f"{dotted}: there is no such {'option' if section else 'section'}",
        given=f"{name}   ({tree.place(key)})",
        allowed=" ".join(siblings),
        try_=None if proposal is None else proposal if isinstance(value, dict) else f"{proposal}={_short(value)}",
    )


def _of_another_kind(key: Key, chosen: type[Options], others: dict[str, type[Options]], tree: Tree) -> RecipeError:
    *section, name = map(str, key)
    kind, field = chosen.model_fields["kind"].default, next(iter(others.values())).model_fields[name]
    there = f"{name} is one of {' and '.join(others)}: {in_words(field)}"
    dotted, word = ".".join(section), (*key[:-1], "kind")
    # on the command line a kind that is named alone takes the place of the recipe's, and of its options
    replaced = _line(tree.place(key)) and not _line(tree.place(word))
    return RecipeError(
        f"{'.'.join(map(str, key))}: there is no such option in kind {kind}",
        given=f"{name}: {_short(_value(tree.values, key))}   ({tree.place(key)})",
        allowed=f"{' '.join(chosen.model_fields)}; {there}",
        try_=f"{dotted}={kind}, without the options of the recipe's kind"
        if replaced
        else f"{dotted}.kind={' or '.join(others)}",
    )


def _wrong(key: Key, what: str, top: type[Options], tree: Tree, message: str = "") -> RecipeError:
    option, classes = find(top, key, tree.values)
    value = _value(tree.values, key)
    allowed: str | None = message or None
    proposal = None
    # a section's own check says all there is to say: its list of options would not help
    if option is not None and (what == "is missing" or message or not classes or not holds_options(option)):
        allowed = in_words(option)
        proposal = _proposal(key, value, option)
    place, what = tree.place(key), _cut(what, 300)  # a check of one's own may have the value in its words
    given = f"nothing   ({place})" if what == "is missing" else f"{_short(value)}   ({place})"
    return RecipeError(f"{'.'.join(map(str, key)) or 'recipe'}: {what}", given=given, allowed=allowed, try_=proposal)


def _proposal(key: Key, value: Any, option: FieldInfo) -> str | None:
    """An assignment that would be accepted: the nearest choice, else an example."""
    whole = tuple(takewhile(lambda part: isinstance(part, str), key))  # a list is given as a whole
    if any(isinstance(part, int) for part in key[:-1]):  # inside an entry of a list: no value of the whole is known
        return None
    words = choices(option)
    if value == "None" and type(None) in plain_types(option):
        return assignment(whole, None)
    if whole == key and isinstance(default_of(option), dict):  # below a free mapping the key is what is wrong
        close = nearest(str(key[-1]), words)
        return assignment((*key[:-1], close), value) if close and close != key[-1] else None
    close = nearest(str(value), words)
    proposed = close or example(option)
    return None if proposed is None else assignment(whole, proposed)


def _is_section(top: type[Options], dotted: str) -> bool:
    return bool(find(top, tuple(dotted.split(".")), {})[1])


def _value(node: Any, key: Key) -> Any:
    for part in key:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return None
    return node


def _short(value: Any) -> str:
    return _cut(as_yaml(value), 120)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
