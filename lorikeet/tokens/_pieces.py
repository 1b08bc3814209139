"""A vocabulary of pieces with scores (sentencepiece's) as a backend of the `tokenizers` package.

sentencepiece turns spaces into ▁ and cuts the whole text at once, never at words. Its BPE has no list of merges: of
all neighbours that together are a piece, it joins the pair whose piece scores best. So every way to cut a piece into
two others is a merge, and merges are ordered by the score of what they make (those that no text can reach do no harm).
Unigram is the same Viterbi search in both packages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

SPACE = "▁"  # U+2581, stands for a space in pieces
NOBODY = "\U0010ffff"  # no character, in no text
# kinds of pieces; sentencepiece's numbers, and GGUF's token types
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MANY = 1 << 16  # more spaces than any text begins with
BYTE_PENALTY = 100.0  # below the worst piece: a Unigram search must not find the text "<0x41>" as the byte's name


def joins(ids: Mapping[str, int], order: Sequence[float]) -> list[tuple[str, str]]:
    """The merges of a BPE that joins any neighbours that together are a token, lowest `order[id]` of it first."""
    found = []
    for text in sorted(ids, key=lambda text: (order[ids[text]], ids[text])):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((left, right))
    return found


@dataclass(frozen=True)
class Pieces:
    """Everything that decides ids. `prefix` says where a space is put before text: before each text between control
    tokens, only at the very start, or nowhere."""

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    unknown: int  # id of the unknown piece
    unigram: bool = False
    prefix: Literal["always", "first", "never"] = "always"
    tidy_spaces: bool = False  # no spaces at the ends, one at a time between
    charsmap: bytes = b""  # sentencepiece's compiled normalisation
    match_normalised: bool = True  # user-defined pieces are looked for after spaces became ▁ (llama.cpp: before)
    takes_behind: frozenset[str] = frozenset()  # pieces that take the white space behind them

    def backend(self) -> Backend:
        """The `tokenizers` backend. Raises the package's bare Exception for a vocabulary it cannot use."""
        backend = Backend(self._unigram() if self.unigram else self._bpe())
        defined = self._of(USER_DEFINED)
        backend.normalizer = self._normalizer(defined if self.match_normalised else [])
        if self.prefix == "first":
            # the first one puts a space before a text's very start, even if ▁ stands there; the second makes it ▁
            first, escape = (" ", "first"), (SPACE, "never")
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Metaspace(sign, scheme, split=False) for sign, scheme in (first, escape)]
            )
        backend.decoder = self._decoder()
        backend.add_tokens([self._added(text, normalized=self.match_normalised, special=False) for text in defined])
        control = self._of(CONTROL, UNKNOWN)
        backend.add_special_tokens([self._added(text, normalized=False, special=True) for text in control])
        return backend

    def _added(self, text: str, *, normalized: bool, special: bool) -> AddedToken:
        return AddedToken(text, normalized=normalized, special=special, rstrip=text in self.takes_behind)

    def _of(self, *kinds: int) -> list[str]:
        return [text for text, kind in zip(self.texts, self.kinds) if kind in kinds]

    @property
    def _bytes(self) -> bool:
        """Has every byte a piece? Then unknown characters are written as bytes."""
        return len({f"<0x{byte:02X}>" for byte in range(256)} & set(self._of(BYTE))) == 256

    def _bpe(self) -> models.BPE:
        vocab = {text: id for id, text in enumerate(self.texts)}
        joinable = {text: id for text, id in vocab.items() if self.kinds[id] in (NORMAL, UNUSED)}
        pairs = joins(joinable, [-score for score in self.scores])
        unknown = self.texts[self.unknown]
        return models.BPE(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=self._bytes)

    def _unigram(self) -> models.Unigram:
        # scores are float32; written as short decimals they come back from a tokenizer.json as the same numbers
        scores = [float(str(np.float32(score))) for score in self.scores]
        lowest = min((score for score, kind in zip(scores, self.kinds) if kind == NORMAL), default=0.0)
        below = round(lowest - BYTE_PENALTY, 3)
        scored = [(text, below if kind == BYTE else score) for text, score, kind in zip(self.texts, scores, self.kinds)]
        return models.Unigram(scored, self.unknown, self._bytes)

    def _normalizer(self, defined: list[str]) -> normalizers.Normalizer:
        steps: list[normalizers.Normalizer] = []
        if self.charsmap:
            # sentencepiece replaces the longest match at each character. Precompiled goes by graphemes and loses their
            # marks, so what can be composed is composed first, and no two characters stand together after it
            between = normalizers.Replace(Regex(r"(?m)(?<=.)(?=.)"), NOBODY)
            composed = normalizers.Precompiled(self.charsmap)
            steps += [normalizers.NFC(), between, composed, normalizers.Replace(NOBODY, "")]
        if self.tidy_spaces:
            # sentencepiece looks for spaces at the end when they are ▁ already, so a ▁ of the text goes too
            for pattern, content in ((rf"\A +|[ {SPACE}]+\z", ""), (" {2,}", " ")):
                steps.append(normalizers.Replace(Regex(pattern), content))
        if self.prefix == "always" and defined:
            # a piece that is looked for after normalisation is itself normalised: that must not put a ▁ before it
            alone = "|".join(re.escape(text) for text in defined)
            steps.append(normalizers.Replace(Regex(rf"\A(?!(?:{alone})?\z)"), SPACE))
        elif self.prefix == "always":
            steps.append(normalizers.Prepend(SPACE))
        return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])

    def _decoder(self) -> decoders.Decoder:
        steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.prefix != "never" or self.tidy_spaces:
            steps.append(decoders.Strip(" ", MANY if self.tidy_spaces else 1, 0))
        return decoders.Sequence(steps)
