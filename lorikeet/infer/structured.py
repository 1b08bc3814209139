"""Replies that follow a grammar: which tokens may come next, from the llguidance package.

llguidance walks the grammar and the tree of all tokens' bytes together, some microseconds a token. It is given exactly
our tokens: the bytes that each adds to a reply, with those that a reply's first token adds as tokens of their own where
the tokenizer drops a space there. What is compiled is kept, so a guide costs once for each tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lorikeet.base.errors import RecipeError
from lorikeet.base.extras import require
from lorikeet.tokens._contract import Tokenizer

SPECIAL = b"\xff"  # begins the names of control tokens to llguidance; no text has this byte
# else, where only one text may follow, only its usual tokens are allowed: not those that a space is dropped from
UNFORCED = '%llguidance {"no_forcing": true}\n'
EXACT = 1 << 53
_TEXT, _LONG_INTEGER = re.compile(r'"(?:[^"\\]|\\.)*"'), re.compile(r"(?<![\d.])-?\d{16,}(?![\d.eE])")
SILENT = 0  # llguidance's own log level: what it has to say comes as an error


def llguidance() -> Any:
    """The package. Raises MissingExtra."""
    return require("llguidance", extra="structured", needed_by="generate.guide")


@lru_cache(maxsize=256)
def complaint(grammar: str) -> str:
    """What is wrong with a grammar, in one line; "" when nothing is.

    llguidance reads a schema's numbers as doubles, so it would write another integer than a large one that is asked
    for; at -2^63 it ends the process (1.9)."""
    if "%json" in grammar:
        for number in _LONG_INTEGER.findall(_TEXT.sub('""', grammar)):
            if len(number) > 20 or abs(int(number)) > EXACT:
                return f"{number[:40]} is beyond the integers that a double holds: ask for it as a string"
    return _line(llguidance().LLMatcher.validate_grammar(UNFORCED + grammar))


@dataclass(frozen=True)
class _Speaker:
    """A tokenizer, and the tokens that end its replies: what a compiled guide belongs to."""

    fingerprint: str
    stop_ids: tuple[int, ...]
    tokenizer: Tokenizer = field(compare=False)


class Vocabulary:
    """All tokens as llguidance knows them: ours by their ids, behind them the ones that only begin a reply."""

    def __init__(self, speaker: _Speaker):
        tokenizer, spelling = speaker.tokenizer, speaker.tokenizer.spelling
        self.size = len(spelling.inside)
        tokens = [b"" if text.startswith(SPECIAL) else text for text in spelling.inside]
        for name, id in tokenizer.control.items():
            tokens[id] = SPECIAL + name.encode()
        self.first = np.arange(self.size)  # id -> what llguidance calls it where it begins a reply
        for id in (id for id, text in enumerate(spelling.first) if text != spelling.inside[id]):
            self.first[id] = len(tokens)
            tokens.append(spelling.first[id])
        ends = [id for id in speaker.stop_ids if id < self.size]
        if not ends:  # then replies end with the guide, or are cut
            ends = [len(tokens)]
            tokens.append(SPECIAL + b"end")
        special = [*tokenizer.control.values(), *ends]

        class Described:  # what llguidance asks of a tokenizer
            eos_token_id, bos_token_id, special_token_ids = ends[0], None, special

            def __init__(self) -> None:
                self.tokens = tokens

            def __call__(self, text: bytes) -> list[int]:
                return tokenizer.encode(text.decode(errors="replace"), after="text")[0]

        package = llguidance()
        wrapped = package.TokenizerWrapper(Described())
        self.inner = package.LLTokenizer(wrapped, n_vocab=len(tokens), eos_token=ends)


class Matcher:
    """Follows one reply through a guide."""

    def __init__(self, compiled: Any, vocabulary: Vocabulary):
        self._compiled, self._vocabulary, self._begun = compiled, vocabulary, False
        self._mask: bytes | None = None  # of what may come next

    @cached_property
    def _inner(self) -> Any:
        """Made when the reply begins: thousands may wait."""
        return self._compiled.deep_copy()

    def allowed(self) -> Tensor:
        """[V] of the tokenizer: which tokens may come next."""
        mask = self._inner.compute_bitmask() if self._mask is None else self._mask
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little").view(np.bool_)
        ours = bits[: self._vocabulary.size] if self._begun else bits[self._vocabulary.first]
        return torch.from_numpy(ours)

    def take(self, id: int) -> None:
        """The next token of the reply, one that was allowed."""
        self._inner.consume_token(id if self._begun else int(self._vocabulary.first[id]))
        self._begun, self._mask = True, self._inner.compute_bitmask()  # only then it is known whether any can follow

    @property
    def ended(self) -> Literal["stop", "length"] | None:
        """Whether nothing can follow: "stop" where the guide is fulfilled, "length" where no token can go on with it.

        llguidance allows an end token in both cases."""
        return _ended(self._inner)

    def accepts(self, text: str) -> bool:
        """Whether `text` as a whole is what the guide asks for."""
        fresh, inner, wanted = self._compiled.deep_copy(), self._vocabulary.inner, text.encode()
        tokens = inner.greedy_tokenize(text)
        return bool(inner.decode_bytes(tokens) == wanted and fresh.consume_tokens(tokens) and fresh.is_accepting())

    def copy(self) -> Matcher:
        """Another at the same place, for a reply that goes on otherwise."""
        twin = Matcher(self._compiled, self._vocabulary)
        twin._inner, twin._begun, twin._mask = self._inner.deep_copy(), self._begun, self._mask
        return twin


def matcher(grammar: str, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> Matcher:
    """A guide's matcher at the beginning of a reply. Raises RecipeError for a guide that cannot be followed with these
    tokens, TokenizerError for tokens without bytes of their own."""
    speaker = _Speaker(tokenizer.fingerprint, tuple(stop_ids), tokenizer)
    return Matcher(_compiled(speaker, grammar), _vocabulary(speaker))


@lru_cache(maxsize=4)
def _vocabulary(speaker: _Speaker) -> Vocabulary:
    return Vocabulary(speaker)


@lru_cache(maxsize=64)
def _compiled(speaker: _Speaker, grammar: str) -> Any:
    made = llguidance().LLMatcher(_vocabulary(speaker).inner, UNFORCED + grammar, log_level=SILENT)
    if made.is_error():
        raise RecipeError("generate.guide: cannot be followed", given=_line(made.get_error()))
    made.compute_bitmask()
    if _ended(made) == "length":
        raise RecipeError(
            "generate.guide: the tokenizer cannot write what the guide asks for",
            given="no token may begin the reply",
            allowed="text that the model's tokens can spell",
        )
    return made


def _ended(inner: Any) -> Literal["stop", "length"] | None:
    if not inner.is_stopped():
        return None
    return "stop" if not inner.is_error() and inner.is_accepting() else "length"


def _line(message: str) -> str:
    """The part of an error that is for people, in one line."""
    return " ".join(message.split("<state>")[0].split())
