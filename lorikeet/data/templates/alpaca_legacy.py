"""Alpaca as its first repository wrote it: nothing stands between `### Response:` and the reply, no line end either."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._headed import PREAMBLE, Headed, HeadedOptions
from lorikeet.tokens._contract import Tokenizer


class AlpacaLegacy(HeadedOptions):
    """`### Instruction:` and `### Response:`, whose reply follows the colon; it ends with EOS."""

    kind: Literal["alpaca_legacy"] = Field("alpaca_legacy", description="alpaca without a line end before the reply")
    system: str = Field(PREAMBLE, description="What stands first where a conversation brings no system prompt.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return Headed(self, tokenizer, system=self.system, answer="### Response:")
