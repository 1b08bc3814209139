"""Any JSON object."""

from __future__ import annotations

from typing import Literal

from lorikeet.infer.guides._json import JsonGuide


class JsonObject(JsonGuide):
    """A reply is one JSON object, with whatever keys."""

    kind: Literal["json_object"] = "json_object"

    def grammar(self) -> str:
        """See `Guide.grammar`."""
        return self._json({"type": "object"})
