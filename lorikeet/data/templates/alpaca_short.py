"""Alpaca without its preamble: the two headings alone, for models that need no explanation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._headed import Headed, HeadedOptions
from lorikeet.tokens._contract import Tokenizer


class AlpacaShort(HeadedOptions):
    """`### Instruction:` and `### Response:` alone; a reply ends with EOS."""

    kind: Literal["alpaca_short"] = Field("alpaca_short", description="alpaca without its preamble")
    system: str = Field("", description="What stands first where a conversation brings no system prompt.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return Headed(self, tokenizer, system=self.system)
