"""The texts that are read and answered together, each with its pages of one cache.

A text that begins like one that was read before takes its pages and goes on from there, whether that one is still
answered or over. Where the length of a text changes what its tokens compute, texts that may outgrow that length share
nothing and are read anew when they do. A network that reads whole texts has no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lorikeet.base.amounts import mib
from lorikeet.base.errors import LorikeetError
from lorikeet.base.memory_errors import memory_ended
from lorikeet.infer.pages import Name, Pages, beginning, following, names
from lorikeet.models.cache_views import Decode, Prefill
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.kv_cache import PAGE, Kv, KvCache, Place, pages_for
from lorikeet.ops.attention import PackedView


@dataclass(eq=False)
class Text:
    """Tokens in the order in which they are read; the last ones may still have to be."""

    ids: list[int]
    by: bytes  # who computes it: only what the same adapter computed is shared
    shares: bool  # its pages, with others
    whole: bool  # it has to be read in one pass
    place: Place
    promised: int  # pages that it may still take
    names: list[Name] = field(default_factory=list)  # of its full pages that have one
    spare: int = 0  # pages promised for its forks

    @property
    def unread(self) -> int:
        """How many of its tokens are still to be read."""
        return len(self.ids) - self.place.length


@dataclass(frozen=True)
class Read:
    """States [N, D] of tokens that were read; `last` [B] is each text's last one, `paths` are all of each. Where not
    every state was asked for, those that are not the last may be zeros."""

    states: Tensor
    last: Tensor
    paths: list[Tensor]


class Reading:
    """Texts of up to `tokens` tokens together."""

    def __init__(self, model: CausalLM, tokens: int, kv: Kv = "auto"):
        """Raises LorikeetError where memory has no room for the keys and values of so many."""
        self.model, self.tokens = model, tokens
        count = pages_for(tokens)
        self.cache = None if model.reads_whole else _cache(model, count, kv)
        self._pages, self._promised = Pages(count), 0

    def begin(
        self,
        ids: Sequence[int],
        most: int,
        by: bytes = b"",
        *,
        reuse: bool = True,
        shares: bool = True,
        forks: int = 0,
    ) -> Text | None:
        """A text of up to `most` tokens; None while there is no room for it. With `reuse` it begins with what is there
        already; without `shares` it has nothing in common with others, now or later. There is room for `forks`, too."""
        limit = self.model.shares_within
        whole = self.cache is None or (limit is not None and most > limit)
        shares = shares and not whole
        named = names(by, ids[: (len(ids) - 1) // PAGE * PAGE]) if shares and reuse else []
        found = self._pages.find(named)
        needed, spare = pages_for(most) - len(found), pages_for(most) * forks
        if self._pages.available - self._promised - self._pages.unused(found) < needed + spare:
            return None
        for page in found:
            self._pages.share(page)
        self._promised += needed + spare
        place = Place(found, len(found) * PAGE)
        return Text(list(ids), by, shares, whole, place, needed, named[: len(found)], spare)

    def room(self, texts: int) -> int:
        """Tokens that so many texts may have each, when no others are there."""
        return pages_for(self.tokens) // texts * PAGE if texts > 1 else self.tokens

    def end(self, text: Text) -> None:
        """The text is over. Its full pages are kept for others while there is room."""
        self._promised -= text.promised + text.spare
        self._pages.leave(text.place.pages)
        text.place, text.promised, text.spare = Place([]), 0, 0

    def fork(self, text: Text) -> Text:
        """A second text that goes on from where this one is. Full pages are the same for both. There is room for as
        many as `begin` was told of, less those that are there and have not ended."""
        self._promised -= text.spare
        text.spare = 0
        length = text.place.length
        full = 0 if text.whole else length // PAGE
        shared, names = text.place.pages[:full], text.names[:full]
        for page in shared:
            self._pages.share(page)
        needed = len(text.place.pages) + text.promised - full
        assert self._pages.available - self._promised >= needed
        self._promised += needed
        twin = Text(list(text.ids), text.by, text.shares, text.whole, Place(shared, length), needed, names)
        if self.cache is not None:
            self._grow(twin, length)
            for source, target in zip(text.place.pages[full:], twin.place.pages[full:]):
                self.cache.copy(source, target)
        return twin

    def read(self, texts: Sequence[Text], counts: Sequence[int], *, every: bool = True) -> Read:
        """Read the next `counts` tokens of each text; `every`: all their states are asked for."""
        if self.cache is None:
            assert all(count == len(text.ids) for text, count in zip(texts, counts))
            return self._anew(texts)
        limit = self.model.shares_within
        share = limit is None or all(len(text.ids) <= limit for text in texts)
        chunks = []
        for text, count in zip(texts, counts):
            start = text.place.length
            self._grow(text, start + count)
            chunks.append(text.ids[start : start + count])
        prefill = Prefill(self.cache, [text.place for text in texts], chunks, share=share, every=every)
        states = self.model.hidden(prefill.tokens, prefill.positions, prefill)
        prefill.advance()
        for text in texts:
            self._name(text)
        return Read(states, prefill.last, prefill.paths)

    def outgrows(self, text: Text) -> bool:
        """Whether going on with this text changes what its tokens compute, so that `go_on` reads all of it anew."""
        return text.place.length == self.model.shares_within

    def go_on(self, texts: Sequence[Text]) -> Tensor:
        """Read the last token of each text, the only one that was not; the states of these [B, D]."""
        if self.cache is None:
            read = self._anew(texts)
            return read.states[read.last]
        outgrown = [text for text in texts if self.outgrows(text)]
        if not outgrown:
            return self._decode(texts)
        # this token changes what the ones before it compute, so what is kept of them is of no use
        for text in outgrown:
            text.place.length = 0
        read = self.read(outgrown, [len(text.ids) for text in outgrown], every=False)
        states = dict(zip(map(id, outgrown), read.states[read.last]))
        others = [text for text in texts if id(text) not in states]
        if others:
            states |= dict(zip(map(id, others), self._decode(others)))
        return torch.stack([states[id(text)] for text in texts])

    def _decode(self, texts: Sequence[Text]) -> Tensor:
        assert self.cache is not None
        for text in texts:
            assert text.unread == 1
            self._grow(text, len(text.ids))
        decode = Decode(self.cache, [text.place for text in texts])
        tokens = decode.padded([text.ids[-1] for text in texts])
        states = self.model.hidden(tokens, decode.positions, decode)
        for text in texts:
            text.place.length += 1
            if text.place.length % PAGE == 0:
                self._name(text)
        return states[: len(texts)]

    def _anew(self, texts: Sequence[Text]) -> Read:
        """All of each text, behind each other."""
        ends = np.cumsum([len(text.ids) for text in texts])
        lengths = torch.tensor([len(text.ids) for text in texts])
        until = torch.repeat_interleave(torch.from_numpy(ends).int(), lengths)
        positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
        tokens = torch.tensor([token for text in texts for token in text.ids])
        device = self.model.device
        states = self.model.hidden(tokens.to(device), positions.to(device), PackedView(until, positions))
        for text in texts:
            text.place.length = len(text.ids)
        paths = list(torch.arange(len(tokens), device=device).split(lengths.tolist()))
        return Read(states, torch.from_numpy(ends - 1).to(device), paths)

    def _grow(self, text: Text, tokens: int) -> None:
        """Give the text the pages that so many tokens take."""
        pages = text.place.pages
        while len(pages) * PAGE < tokens:
            assert text.promised > 0, "a text is longer than was said"
            pages.append(self._pages.take())
            text.promised -= 1
            self._promised -= 1

    def _name(self, text: Text) -> None:
        """Full pages get their names, for texts to come."""
        if not text.shares:
            return
        full = text.place.length // PAGE
        for i in range(len(text.names), full):
            before = text.names[-1] if i else beginning(text.by)
            text.names.append(following(before, text.ids[i * PAGE : (i + 1) * PAGE]))
            text.place.pages[i] = self._pages.name(text.place.pages[i], text.names[i])


def _cache(model: CausalLM, pages: int, kv: Kv) -> KvCache:
    try:
        return KvCache(model.shape, 1 + pages, model.dtype, model.device, kv)
    except (MemoryError, RuntimeError) as error:
        if memory_ended(error) is None:
            raise
    size = KvCache.bytes_of(model.shape, 1, pages * PAGE, model.dtype, kv)
    raise LorikeetError(
        "memory has no room for the keys and values of so many tokens",
        given=f"{pages * PAGE:,} tokens, {mib(size)}",
        try_="a lower generate.batch_size, generate.num_beams or generate.max_new_tokens; of a server --cache-tokens",
    )
