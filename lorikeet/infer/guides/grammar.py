"""A context-free grammar in Lark's language, as llguidance reads it; the reply is what `start` makes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.infer.guides._contract import Guide


class Grammar(Guide):
    """A reply follows a grammar."""

    kind: Literal["grammar"] = "grammar"
    lark: str = Field(description="The grammar.", examples=['start: "a" start | "b"'])

    def grammar(self) -> str:
        """See `Guide.grammar`."""
        return self.lark
