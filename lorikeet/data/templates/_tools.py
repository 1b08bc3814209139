"""Tools and calls to them as OpenAI's API has them, in the shapes that templates write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lorikeet.data.templates._environment import to_json


def described(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """{"type": "function", "function": {...}} of a tool, also where only the inner part is given."""
    return tool if isinstance(tool.get("function"), Mapping) else {"type": "function", "function": dict(tool)}


def called(call: Mapping[str, Any]) -> tuple[str, Any]:
    """(name, arguments) of a call; arguments given as a string of JSON are read, so that they are not quoted twice."""
    function = call.get("function", call)
    return str(function.get("name", "")), read_arguments(function.get("arguments", {}))


def read_arguments(arguments: Any) -> Any:
    """The value behind a string of JSON; any other string, and any other value, as it is."""
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except ValueError:
            return arguments
    return arguments


def call_json(call: Mapping[str, Any], key: str = "arguments") -> str:
    """`{"name": ..., "arguments": ...}`, the form that most templates share."""
    name, arguments = called(call)
    return f'{{"name": {to_json(name)}, "{key}": {to_json(arguments)}}}'
