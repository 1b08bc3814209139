"""What a guide is: something that a reply must be, as a grammar in Lark's language, as llguidance reads it.

`generate.guide` holds one kind, or the name of a file: a JSON schema (.json) or a grammar (.lark).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator
from typing_extensions import Self

from lorikeet.base.options import Options
from lorikeet.infer import structured
from lorikeet.tokens._contract import Tokenizer


class Guide(Options):
    """Base of the kinds; fields are `generate.guide`'s options."""

    def grammar(self) -> str | None:
        """In Lark's language; None where anything goes. Raises ValueError for what is none."""
        raise NotImplementedError

    def compile(self, tokenizer: Tokenizer, stop_ids: Sequence[int] = ()) -> structured.Matcher | None:
        """What follows a reply of this tokenizer. Raises RecipeError where the tokens cannot write it."""
        grammar = self.grammar()
        return None if grammar is None else structured.matcher(grammar, tokenizer, stop_ids)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        grammar = self.grammar()
        wrong = "" if grammar is None else structured.complaint(grammar)
        if wrong:
            raise ValueError(wrong)
        return self


def read_guide(value: Any) -> Any:
    """What stands for a guide, as one: None is none, a file's name is what stands in the file."""
    if value is None:
        return {"kind": "none"}
    if not isinstance(value, str) or not value.endswith((".json", ".lark")):
        return value
    try:
        text = Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {value}: {error}") from error
    if value.endswith(".lark"):
        return {"kind": "grammar", "lark": text}
    try:
        return {"kind": "json_schema", "json_schema": json.loads(text)}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{value} is not JSON: {error}") from error
