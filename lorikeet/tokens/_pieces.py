"""A vocabulary of pieces with scores (sentencepiece's) as a backend of the `tokenizers` package.

sentencepiece turns spaces into ▁ and cuts the whole text at once, never at words. Its BPE has no list of merges: of
all neighbours that together are a piece, it joins the pair whose piece scores best. So every way to cut a piece into
two others is a merge, and merges are ordered by the score of what they make. Unigram is the same Viterbi search in
both packages. What cannot be said exactly in a tokenizer.json: two overlapping cuts of one and the same piece (the
`aba` in `ababa`) have one score there, where the leftmost wins, and two ranks here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

SPACE = "▁"  # U+2581, stands for a space in pieces
# kinds of pieces; sentencepiece's numbers, and GGUF's token types
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_PENALTY = 100.0  # below the worst piece: a Unigram search must not find the text "<0x41>" as the byte's name


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
        backend.add_tokens([AddedToken(text, normalized=self.match_normalised, special=False) for text in defined])
        control = self._of(CONTROL, UNKNOWN)
        backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
        return backend

    def _of(self, *kinds: int) -> list[str]:
        return [text for text, kind in zip(self.texts, self.kinds) if kind in kinds]

    @property
    def _bytes(self) -> bool:
        """Has every byte a piece? Then unknown characters are written as bytes."""
        return len({f"<0x{byte:02X}>" for byte in range(256)} & set(self._of(BYTE))) == 256

    def _bpe(self) -> models.BPE:
        vocab = {text: id for id, text in enumerate(self.texts)}
        joinable = {text: id for text, id in vocab.items() if self.kinds[id] in (NORMAL, UNUSED)}
        merges = []
        for text, id in joinable.items():
            for cut in range(1, len(text)):
                left, right = joinable.get(text[:cut]), joinable.get(text[cut:])
                if left is not None and right is not None:
                    merges.append((-self.scores[id], id, left, right))
        merges.sort()
        pairs = [(self.texts[left], self.texts[right]) for *_, left, right in merges]
        unknown = self.texts[self.unknown]
        return models.BPE(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=self._bytes)

    def _unigram(self) -> models.Unigram:
        lowest = min((score for score, kind in zip(self.scores, self.kinds) if kind == NORMAL), default=0.0)
        scored = [
            (text, lowest - BYTE_PENALTY if kind == BYTE else score)
            for text, score, kind in zip(self.texts, self.scores, self.kinds)
        ]
        return models.Unigram(scored, self.unknown, self._bytes)

    def _normalizer(self, defined: list[str]) -> normalizers.Normalizer:
        steps: list[normalizers.Normalizer] = []
        if self.charsmap:
            steps.append(normalizers.Precompiled(self.charsmap))
        if self.tidy_spaces:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.prefix == "always" and defined:
            # a piece that is looked for after normalisation is itself normalised: that must not put a ▁ before it
            alone = "|".join(re.escape(text) for text in defined)
            steps.append(normalizers.Replace(Regex(rf"\A(?!(?:{alone})?\z)"), SPACE))
        elif self.prefix == "always":
            steps.append(normalizers.Prepend(SPACE))
        return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])

    def _decoder(self) -> decoders.Decoder:
        steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.prefix != "never":
            steps.append(decoders.Strip(" ", 1, 0))
        return decoders.Sequence(steps)
