"""A regular expression that the whole reply matches (Rust's syntax: no look-around, no back-references)."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from lorikeet.infer import structured
from lorikeet.infer.guides._contract import Guide


class Regex(Guide):
    """A reply matches a regular expression from its first character to its last."""

    kind: Literal["regex"] = "regex"
    regex: str = Field(description="The expression.", examples=["[0-9]{4}-[0-9]{2}"])

    def grammar(self) -> str:
        """See `Guide.grammar`."""
        made = json.loads(structured.llguidance().LLMatcher.grammar_from_regex(self.regex))
        return str(made["grammars"][0]["lark_grammar"])
