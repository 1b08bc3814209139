"""Tools and calls in the one shape chat templates expect, whichever of their shapes a file has.

A tool is {"type": "function", "function": {"name", "description", "parameters"}}; bare functions (OpenAI's old
`functions`, LLaMA-Factory's `tools`) get the wrapper. A call is {"type": "function", "function": {"name", "arguments"}}
with `arguments` as an object: OpenAI writes them as a JSON string, which a template would quote a second time, so
inference servers parse it before they render, and so does this.
"""

from __future__ import annotations

from typing import Any

import orjson

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Origin
from lorikeet.data.json_text import loads

TOOL = '[{"type": "function", "function": {"name": "...", "parameters": {...}}}]'
CALL = '[{"type": "function", "function": {"name": "...", "arguments": {...}}}]'


def tools(value: object, where: str, origin: Origin) -> tuple[dict[str, Any], ...]:
    """The tools in `value`: a list, one tool, either of them as a JSON string, or nothing."""
    return tuple(_wrapped(tool, where, origin, TOOL) for tool in _objects(value, where, origin, TOOL))


def calls(value: object, where: str, origin: Origin) -> tuple[dict[str, Any], ...]:
    """The calls in `value`, with their arguments as objects; a list, one call, or either as a JSON string."""
    found = []
    for call in _objects(value, where, origin, CALL):
        wrapped = _wrapped({key: item for key, item in call.items() if item is not None}, where, origin, CALL)
        function = dict(wrapped["function"])
        if "arguments" not in function and "parameters" in function:  # as Llama's own format names them
            function["arguments"] = function.pop("parameters")
        function["arguments"] = _arguments(function.get("arguments"), f"{where} ({function['name']})", origin)
        found.append({**wrapped, "function": function})
    return tuple(found)


def _wrapped(given: dict[str, Any], where: str, origin: Origin, allowed: str) -> dict[str, Any]:
    if "function" in given:
        whole: dict[str, Any] = {"type": "function", **given}
    else:
        outer = {key: item for key, item in given.items() if key in ("type", "id")}
        whole = {
            "type": "function",
            **outer,
            "function": {key: item for key, item in given.items() if key not in outer},
        }
    function = whole["function"]
    name = function.get("name") if isinstance(function, dict) else None
    if whole["type"] != "function" or not isinstance(name, str) or not name:
        raise DataError(f"{origin}: {where} is no function with a name", given=repr(given)[:120], allowed=allowed)
    return whole


def _arguments(value: object, where: str, origin: Origin) -> dict[str, Any]:
    given = value
    if isinstance(value, str) and value.strip():
        value = _parsed(value, f"{where} arguments", origin, "an object")
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise DataError(
            f"{origin}: {where} has arguments that are no object", given=repr(given)[:120], allowed='{"name": value}'
        )
    return value


def _objects(value: object, where: str, origin: Origin, allowed: str) -> list[dict[str, Any]]:
    """A list of objects, one object, or either as a JSON string (tables cannot hold columns of mixed types)."""
    given = value
    if isinstance(value, str):
        value = _parsed(value, where, origin, allowed) if value.strip() else None
    if value is None:
        return []
    listed = [value] if isinstance(value, dict) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(item, dict) for item in listed):
        raise DataError(f"{origin}: {where} is not a list of objects", given=repr(given)[:120], allowed=allowed)
    return list(listed)


def _parsed(text: str, where: str, origin: Origin, allowed: str) -> object:
    try:
        return loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(
            f"{origin}: {where}: broken JSON at column {error.colno}: {error.msg}",
            given=text[max(0, error.pos - 40) : error.pos + 40],
            allowed=allowed,
            try_="data.bad_rows=skip leaves such rows out and counts them",
        ) from error
