"""Stanford Alpaca's instruction layout, as others use it for conversations of any length."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._headed import PREAMBLE, Headed, HeadedOptions
from lorikeet.tokens._contract import Tokenizer


class Alpaca(HeadedOptions):
    """`### Instruction:` and `### Response:`; a reply ends with EOS."""

    kind: Literal["alpaca"] = Field("alpaca", description="### Instruction: ... ### Response: ...")
    system: str = Field(PREAMBLE, description="What stands first where a conversation brings no system prompt.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return Headed(self, tokenizer, system=self.system)
