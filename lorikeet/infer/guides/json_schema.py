"""JSON that a JSON schema allows. Keywords that cannot be followed token by token are refused, none is passed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lorikeet.infer.guides._json import JsonGuide


class JsonSchema(JsonGuide):
    """A reply is JSON that is valid under a schema."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] | bool = Field(description="The schema.", examples=[{"type": "object"}])

    def grammar(self) -> str:
        """See `Guide.grammar`."""
        if self.json_schema is False:
            raise ValueError("false allows nothing")
        if self.json_schema is True:
            return self._json({})
        for number in _integers(self.json_schema):
            if not -(1 << 63) <= number < 1 << 64:  # the library reads it as a double and would write another number
                raise ValueError(f"{number} does not fit in 64 bits: ask for it as a string")
        return self._json(self.json_schema)


def _integers(schema: Any) -> Iterator[int]:
    """Those that a schema names, wherever."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, int):
            yield part
