"""One of some texts, word for word."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from lorikeet.infer.guides._contract import Guide


class Choice(Guide):
    """A reply is one of these texts."""

    kind: Literal["choice"] = "choice"
    choice: list[str] = Field(min_length=1, description="The texts.", examples=[["yes", "no"]])

    def grammar(self) -> str:
        """See `Guide.grammar`."""
        if not all(self.choice):
            raise ValueError("one of the texts is empty")
        return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in self.choice)
