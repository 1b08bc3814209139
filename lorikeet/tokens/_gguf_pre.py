"""How llama.cpp splits text before byte-level BPE, by the name in `tokenizer.ggml.pre` (its src/llama-vocab.cpp).

The patterns of a kind are applied one after the other, each to the pieces the one before it left. Where llama.cpp's
pattern only approximates the original tokenizer's, llama.cpp's is taken: the ids are those it computes.
"""

from __future__ import annotations

from typing import NamedTuple


class Pre(NamedTuple):
    """How text is split, and what llama.cpp assumes with it."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as a whole is not merged up from bytes
    add_bos: bool = False  # when the file does not say


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2_PRE = Pre((_GPT2,))
_DIGITS_PRE = Pre((r"\p{N}", _GPT2))
_LLAMA3_PRE = Pre((f"{_CONTRACTION}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",), ignore_merges=True, add_bos=True)
_QWEN2_PRE = Pre((f"{_CONTRACTION}|{_WORDS}|\\p{{N}}|{_REST}",))
_DEFAULT_PRE = Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

PRE = {
    "default": _DEFAULT_PRE,
    "gpt-2": _GPT2_PRE,
    "phi-2": _GPT2_PRE,
    "olmo": _GPT2_PRE,
    "smollm": _DIGITS_PRE,
    "starcoder": _DIGITS_PRE,
    "refact": _DIGITS_PRE,
    "command-r": _DIGITS_PRE,
    "codeshell": _DIGITS_PRE,
    "llama-bpe": _LLAMA3_PRE,
    "llama3": _LLAMA3_PRE,
    "llama-v3": _LLAMA3_PRE,
    "qwen2": _QWEN2_PRE,
    "deepseek-r1-qwen": _QWEN2_PRE,
    "stablelm2": _QWEN2_PRE,
}
