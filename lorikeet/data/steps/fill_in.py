"""Placeholders of identity data filled in: "I am {{name}}, made by {{author}}" with a name and an author.

Builders of assistants share such rows with holes in them. The spellings: {{NAME}} (ms-swift), {{name}} (LLaMA-Factory),
<NAME> (its older sets), any case and spaces inside braces. A row in which a hole is left over is dropped: a model that
learned it would introduce itself as "{{author}}".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record

# {{ name }}, and in the older spelling <NAME>: in angle brackets small letters are more often HTML
PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}|<(NAME|AUTHOR)>")


class FillIn(Step):
    """Rows with their placeholders filled in."""

    kind: Literal["fill_in"] = "fill_in"
    name: str | None = Field(None, description="What {{name}} becomes.", examples=["Ada"])
    author: str | None = Field(None, description="What {{author}} becomes.", examples=["the Analytical Society"])
    others: dict[str, str] = Field({}, description="What other placeholders become.", examples=[{"city": "Turin"}])
    left: Literal["drop", "keep"] = Field(
        "drop", description="What becomes of a row with a placeholder that has no value."
    )

    @model_validator(mode="after")
    def _has_values(self) -> FillIn:
        if not self._values:
            raise ValueError("needs a name, an author or others")
        for key, value in self._values.items():
            if not re.fullmatch(r"[a-z_]\w*", key):
                raise ValueError(f"'{key}' is no placeholder's name: write name for {{{{name}}}}")
            if not value.strip():
                raise ValueError(f"the value of '{key}' is empty")
            if PLACEHOLDER.search(value):
                raise ValueError(f"the value of '{key}' is a placeholder itself: {value}")
        return self

    @cached_property
    def _values(self) -> dict[str, str]:
        said = {"name": self.name, "author": self.author, **self.others}
        return {key.lower(): value for key, value in said.items() if value is not None}

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        found: set[str] = set()
        left: list[str] = []

        def filled(match: re.Match[str]) -> str:
            key = (match[1] or match[2]).lower()
            if key in self._values:
                found.add(key)
                return self._values[key]
            left.append(match[0])
            return match[0]

        def apply(text: str) -> str:
            return PLACEHOLDER.sub(filled, text) if "{{" in text or "<" in text else text

        before = [(turn.content, turn.input) for turn in record.turns]
        for turn in record.turns:
            turn.apply(apply)
            turn.rest = _inside(turn.rest, apply)
        if left and self.left == "drop":
            for turn, (content, extra) in zip(record.turns, before):
                turn.content, turn.input = content, extra  # rejected.jsonl shows the row as it was
            log.drop(record, "a placeholder is left", " ".join(dict.fromkeys(left))[:200])
            return []
        for key in sorted(found):
            log.change(record, f"{key} filled in")
        return [record]


def _inside(value: Any, apply: Any) -> Any:
    """A turn's own keys: the arguments of a call may have holes too."""
    if isinstance(value, str):
        return apply(value)
    if isinstance(value, dict):
        return {key: _inside(one, apply) for key, one in value.items()}
    return [_inside(one, apply) for one in value] if isinstance(value, list) else value
