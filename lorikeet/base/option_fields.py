"""What the fields of the option classes say about themselves: which option a key means, and its type in words.

Error messages, docs/options.md and the recipe loader all ask here, so they cannot disagree.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lorikeet.base.options import Options
from lorikeet.base.yaml_lines import Key, dump

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    NoneType: "null",
}
_SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="), ("multiple_of", "a multiple of"))


def option_classes(annotation: Any) -> list[type[Options]]:
    """The option classes inside an annotation: one for a section, several for a field that holds a kind."""
    if inspect.isclass(annotation) and issubclass(annotation, Options):
        return [annotation]
    return [found for part in get_args(annotation) for found in option_classes(part)]


def kinds_of(field: FieldInfo) -> dict[str, type[Options]]:
    """The kinds a field may hold by name, empty for a field that holds none."""
    classes = option_classes(field.annotation)
    return {str(one.model_fields["kind"].default): one for one in classes if "kind" in one.model_fields}


def holds_options(field: FieldInfo) -> bool:
    """Whether the field's value is one mapping of options (a section, a kind), and not a list of them."""
    return bool(option_classes(field.annotation)) and list not in _leaves(field.annotation)


def default_of(field: FieldInfo) -> Any:
    """The default, or PydanticUndefined where the option is required."""
    return field.get_default(call_default_factory=True, validated_data={})


def find(top: type[Options], key: Key, values: Any) -> tuple[FieldInfo | None, list[type[Options]]]:
    """The field `key` means in a recipe that holds `values`, and the classes whose options may stand below it.

    (None, []) where there is no such option. Below a field that holds a free mapping, every key is that field.
    """
    classes, field, node = [top], None, values
    for part in key:
        node = _child(node, part)
        if isinstance(part, int):  # an entry of a list may say which of the kinds it is
            named = node.get("kind") if isinstance(node, dict) else node
            classes = [one for one in classes if _kind_of(one) == named] or classes
            continue
        if field is not None and not classes and dict in _leaves(field.annotation):
            continue
        field = next((one.model_fields[part] for one in classes if part in one.model_fields), None)
        if field is None:
            return None, []
        kinds = kinds_of(field)
        kind = node.get("kind") if isinstance(node, dict) else node
        default = getattr(default_of(field), "kind", None)
        if kinds and isinstance(node, dict) and kind is None:
            kind = default
        chosen = kinds.get(kind) if isinstance(kind, str) else None
        classes = [chosen] if chosen else list(kinds.values()) or option_classes(field.annotation)
    return field, classes


def keys_below(top: type[Options]) -> list[str]:
    """Every dotted key of `top`, all kinds included."""
    found: list[str] = []
    for name, field in top.model_fields.items():
        found.append(name)
        for one in option_classes(field.annotation):
            found.extend(f"{name}.{below}" for below in keys_below(one))
    return list(dict.fromkeys(found))


def accepts(field: FieldInfo, kind: type) -> bool:
    """Whether values of the plain type `kind` are among those `field` is declared to hold."""
    leaves = _leaves(field.annotation)
    return kind in leaves or Any in leaves or dict in leaves


def plain_types(field: FieldInfo) -> list[Any]:
    """The plain types inside a field's annotation; the choices of a Literal stand for themselves."""
    return _leaves(field.annotation)


def choices(field: FieldInfo) -> list[str]:
    """The words a field's Literals admit."""
    return [leaf for leaf in _leaves(field.annotation) if isinstance(leaf, str)]


def in_words(field: FieldInfo) -> str:
    """The type, the choices and the bounds of a field, e.g. `a number > 0 and <= 1, or null`."""
    return _words(field.annotation, field.metadata)


def example(field: FieldInfo) -> Any:
    """A value that the field accepts, or None where nothing can be proposed."""
    if field.examples:
        return field.examples[0]
    default = default_of(field)
    if default is not PydanticUndefined and default is not None and not isinstance(default, Options):
        return str(default) if isinstance(default, Path) else default
    leaves = _leaves(field.annotation)
    low = next((getattr(item, "ge", getattr(item, "gt", None)) for item in field.metadata if _is_low(item)), None)
    if int in leaves:
        return 1 if low is None else int(low) + 1
    if float in leaves:
        return 0.5 if low is None else float(low) + 0.5
    words = choices(field)
    return words[0] if words else None


def as_yaml(value: Any) -> str:
    """A value on one line, as it would stand in a recipe."""
    if isinstance(value, str) and "\n" not in value and value.strip() == value and value:
        return value
    if isinstance(value, Path):
        return str(value)
    return dump(value, one_line=True)


def assignment(key: Key, value: Any) -> str:
    """`train.learning_rate=0.0002`, quoted as a shell needs it."""
    dotted = ".".join(map(str, key))
    text = as_yaml(value)
    return f"{dotted}={shlex.quote(text) if text else repr('')}"


def _kind_of(one: type[Options]) -> Any:
    """The kind that a class is; of one that is none, what no recipe says."""
    return one.model_fields["kind"].default if "kind" in one.model_fields else PydanticUndefined


def _child(node: Any, part: str | int) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return node[part]
    return None


def _is_low(item: Any) -> bool:
    return hasattr(item, "ge") or hasattr(item, "gt")


def _leaves(annotation: Any) -> list[Any]:
    """The plain types, and the choices of a Literal, inside an annotation."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if (origin := get_origin(annotation)) in (dict, Mapping, list, tuple):
        return [
            dict if origin is Mapping else origin,
            *(leaf for part in get_args(annotation) for leaf in _leaves(part)),
        ]
    if get_args(annotation):
        parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
        return [leaf for part in parts for leaf in _leaves(part)]
    return [annotation]


def _words(annotation: Any, metadata: Any = ()) -> str:
    bounds = " and ".join(
        f"{sign} {_number(getattr(item, name))}" for item in metadata for name, sign in _SIGNS if hasattr(item, name)
    )
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:  # what Field says inside a type lies one level deeper
        inside = [item for part in parts[1:] for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return _words(parts[0], [*inside, *metadata])
    if origin is Literal:
        return " ".join(as_yaml(choice) for choice in parts)
    if origin in (list, tuple):
        inner = [part for part in parts if part is not Ellipsis]
        return "a list of " + " and ".join(dict.fromkeys(_plural(part) for part in inner)) if inner else "a list"
    if origin in (dict, Mapping) or annotation is dict:
        return "a mapping" if len(parts) < 2 else f"a mapping of {_plural(parts[0])} to {_plural(parts[1])}"
    if origin is Union or type(annotation).__name__ == "UnionType":
        direct = [one for part in parts if list not in _leaves(part) for one in option_classes(part)]
        kinds = [one.model_fields["kind"].default for one in direct if "kind" in one.model_fields]
        rest = [part for part in parts if not option_classes(part) or list in _leaves(part)]
        words = [f"{{kind: ...}} with one of: {' '.join(kinds)}"] if kinds else []
        # the bounds belong to the numbers, so they stand right behind them
        words += [
            _words(part, metadata if part in (int, float) or get_origin(part) is Annotated else ()) for part in rest
        ]
        words += [] if kinds else [_words(one) for one in direct]
        return ", or ".join(dict.fromkeys(words))
    if inspect.isclass(annotation) and issubclass(annotation, Options):
        return "a mapping of: " + " ".join(annotation.model_fields)
    word = _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{word} {bounds}" if bounds and annotation in (int, float) else word


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _plural(annotation: Any) -> str:
    words = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths", bool: "true or false", Any: "values"}
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return " or ".join(_plural(part) for part in get_args(annotation))
    if inspect.isclass(annotation) and issubclass(annotation, Options):
        return "mappings"
    return words.get(annotation) or _words(annotation)
