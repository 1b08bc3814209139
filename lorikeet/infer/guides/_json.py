"""What the kinds that write JSON have in common."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from lorikeet.infer.guides._contract import Guide


class JsonGuide(Guide):
    """Base of the kinds that write JSON."""

    max_whitespace: int = Field(
        24,
        ge=0,
        le=1000,
        description="Characters of white space between two parts of the JSON, at most: a model can lose itself there.",
    )

    def _json(self, schema: dict[str, Any]) -> str:
        pattern = rf"[\x20\x0A\x0D\x09]{{1,{self.max_whitespace}}}"
        limits = {"whitespace_pattern": pattern} if self.max_whitespace else {"whitespace_flexible": False}
        try:
            return f"start: %json {json.dumps({**schema, 'x-guidance': limits})}"
        except RecursionError as error:
            raise ValueError("a schema that is nested too deep") from error
