"""White space beside control tokens in a GGUF file: llama.cpp goes by the model's name (its src/llama-vocab.cpp).

No key says that a token takes the white space beside it. In a model whose `general.name` has phi-3 or phi3 in it every
control, user-defined and unknown token takes what is behind it, but for three; in any other model none does, and what
is before a token none ever takes. So a name is chosen by the tokenizer, and what no name says is told. llama.cpp takes
the six white characters of ASCII, the tokenizers package (and the reader here) all of Unicode's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lorikeet.base.log import note
from lorikeet.tokens._pieces import CONTROL, UNKNOWN, USER_DEFINED

_PHI3 = re.compile(r"(phi)-?3", re.IGNORECASE)
_NEVER = frozenset(("<unk>", "<s>", "<|endoftext|>"))
_NEEDED = _NEVER | {"</s>"}  # llama.cpp looks them up: a file of such a name without one of them is not loaded


def taken_behind(name: object, tokens: Sequence[str | None], types: Sequence[int]) -> frozenset[str]:
    """The tokens that take the white space behind them in a model of this name."""
    if not isinstance(name, str) or not _PHI3.search(name):
        return frozenset()
    return _special(tokens, types) - _NEVER


def name_for(name: str, tokens: Sequence[str | None], types: Sequence[int], added: Sequence[dict[str, Any]]) -> str:
    """`name`, changed where llama.cpp would take it for one of the other kind. `added`: tokenizer.json's added tokens.
    Notes the tokens beside which llama.cpp treats white space otherwise than the tokenizer."""
    special = _special(tokens, types)
    behind = {token["content"] for token in added if token["rstrip"]} & special
    before = {token["content"] for token in added if token["lstrip"]} & special
    as_phi3 = taken_behind("phi3", tokens, types)
    is_one = _NEEDED.issubset(tokens) and len(behind ^ as_phi3) < len(behind)
    taken = as_phi3 if is_one else frozenset[str]()
    for does, does_not, others in (("keeps", "take", (behind - taken) | before), ("drops", "leave", taken - behind)):
        if others:
            note(
                f"llama.cpp {does} white space beside {len(others)} tokens that {does_not} it here, {min(others)} for "
                "one: no GGUF file can say otherwise, so texts with spaces at their ends get other ids"
            )
    if is_one:
        return name if _PHI3.search(name) else f"{name}-phi-3"
    return _PHI3.sub(r"\1_3", name)


def _special(tokens: Sequence[str | None], types: Sequence[int]) -> frozenset[str]:
    """The tokens that llama.cpp looks for in texts before it splits them."""
    kinds = (CONTROL, USER_DEFINED, UNKNOWN)
    return frozenset(text for text, kind in zip(tokens, types) if text is not None and kind in kinds)
