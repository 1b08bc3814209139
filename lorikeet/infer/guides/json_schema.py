"""JSON that a JSON schema allows. Keywords that cannot be followed token by token are refused, none is passed over."""

from __future__ import annotations

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
        return self._json({} if self.json_schema is True else self.json_schema)
