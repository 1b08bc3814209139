"""The texts that are read and answered together, each in a row of one cache.

Texts in the first rows are live: one that ends is replaced by the last, so no row between them is computed for nothing,
and a new text comes behind them while the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.kv_cache import Decode, KvCache, Prefill


class Reading:
    """At most `rows` texts at once, of up to `capacity` tokens, which all begin with the same `begun` tokens."""

    def __init__(self, model: CausalLM, rows: int, capacity: int, begun: int = 0):
        self.model, self.most, self.live = model, rows, 0
        self._begun, self._first = begun, True
        self._cache = KvCache(model.shape, rows, capacity, model.dtype, model.device)

    @property
    def free(self) -> int:
        """Rows without a text."""
        return self.most - self.live

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Add texts; the logits of what follows each [B, V]."""
        assert 0 < len(texts) <= self.free
        rows = range(self.live, self.live + len(texts))
        self.live += len(texts)
        begun = (0, self._begun) if self._begun and not self._first else None  # row 0 holds it, or held it last
        self._first = False
        return self._prefill(texts, rows, begun)

    def again(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read all live texts anew; the logits of what follows each [B, V]."""
        assert len(texts) == self.live
        return self._prefill(texts, range(self.live), None)

    def go_on(self, tokens: Sequence[int]) -> Tensor:
        """Add a token to each live text; the logits of what follows it [B, V]."""
        assert len(tokens) == self.live
        decode = Decode(self._cache, self.live)
        padded = torch.zeros(decode.rows, dtype=torch.int64)
        padded[: self.live] = torch.tensor(tokens)
        hidden = self.model.hidden(padded.to(self.model.device), decode.positions, decode)
        decode.advance()
        return self.model.head.logits(hidden)[: self.live]

    def end(self, row: int) -> None:
        """The text of a row is over: the last live text takes its place."""
        assert row < self.live
        self.live -= 1
        if row != self.live:
            self._cache.move(self.live, row)

    def _prefill(self, texts: Sequence[Sequence[int]], rows: range, begun: tuple[int, int] | None) -> Tensor:
        prefill = Prefill(self._cache, texts, self.model.shares_within, rows=rows, begun=begun)
        hidden = self.model.hidden(prefill.tokens, prefill.positions, prefill)
        return self.model.head.logits(hidden[prefill.last])


def common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with in common, less than any of them has."""
    if not texts:
        return 0
    least, greatest = min(map(list, texts)), max(map(list, texts))
    size = min(map(len, texts)) - 1
    return next((i for i in range(size) if least[i] != greatest[i]), size)
