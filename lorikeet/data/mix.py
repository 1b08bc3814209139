"""Several sources as one training set, either end to end or mixed by weight.

Without weights an epoch is every example of every source once. With weights, the examples of a run are drawn one after
the other, and the sources take turns: among the first n draws, source i has between n w_i - 1 and n w_i + 1, at every
n, so every step has its share however small steps are. The turns are the schedule of R. Tijdeman, "The chairman
assignment problem" (Discrete Mathematics 32, 1980): of the sources that are behind far enough, the one whose turn is
due first. Rounding each step on its own would not do: it starves small weights, and taking largest remainders of the
running totals can hand a turn out and take it back.

A source gives its examples in the order of a permutation, then of a fresh one, and so on through the whole run: no
example comes again before its source is through, and what an epoch leaves out the next one has. All of it is a pure
function of (seed, draw), so resuming needs no saved state.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from lorikeet.base.nouns import Example
from lorikeet.base.options import Options
from lorikeet.base.rng import numpy_rng
from lorikeet.data.dataset import Examples

Epoch = Literal["first_exhausted", "all_exhausted"] | Annotated[int, Field(ge=1)]


class MixOptions(Options):
    """How long an epoch of a weighted mix is."""

    epoch: Epoch = Field(
        "first_exhausted",
        description="With weights, an epoch ends when the first source is through, or when all are, or after so many "
        "examples.",
    )


class Turns:
    """Whose turn each draw is: Tijdeman's schedule in whole numbers, repeating after sum(weights) draws."""

    def __init__(self, weights: Sequence[int]):
        """`weights`: whole numbers above 0 without a common factor."""
        assert weights and min(weights) > 0
        self.weights, self.total = list(weights), sum(weights)
        # behind by a share of h - 1 / h and the turn is overdue; twice the others, as Tijdeman's bound has it
        self._h = max(1, 2 * len(weights) - 2)
        common = math.lcm(*weights)
        self._pace = [common // weight for weight in weights]  # a small weight's next turn is due later
        self._due = [self.total * (self._h - 1) * pace for pace in self._pace]
        self._taken = [0] * len(weights)
        self._sources = array("I")  # of each draw of the first period, as far as anyone asked
        self._ranks = array("Q")  # how many draws that source had before

    def draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(source [n], how many draws that source had before [n]), both int64, of the draws start .. stop - 1."""
        self._extend(min(stop, self.total))
        taken, ranked = np.frombuffer(self._sources, np.uint32), np.frombuffer(self._ranks, np.uint64)
        if stop <= self.total:  # nothing repeats yet, and the total of awkward weights may have forty digits
            return taken[start:stop].astype(np.int64), ranked[start:stop].astype(np.int64)
        periods, within = np.divmod(np.arange(start, stop, dtype=np.int64), self.total)
        sources, ranks = taken[within].astype(np.int64), ranked[within].astype(np.int64)
        return sources, ranks + periods * np.array(self.weights, np.int64)[sources]

    def _extend(self, length: int) -> None:
        total, h = self.total, self._h
        for n in range(len(self._sources) + 1, length + 1):
            ready = [i for i, w in enumerate(self.weights) if (w * n - self._taken[i] * total) * h >= total]
            source = min(ready, key=self._due.__getitem__)
            self._sources.append(source)
            self._ranks.append(self._taken[source])
            self._taken[source] += 1
            self._due[source] += total * h * self._pace[source]


class Mixture(Sequence[Example]):
    """The examples of several stores, in the order of the stores; with weights, drawn in turns."""

    def __init__(self, parts: Sequence[Examples], weights: Sequence[float] | None = None, epoch: Epoch = 1):
        """`weights`: one for each part, relative to each other. `epoch` counts only with weights."""
        assert weights is None or (len(weights) == len(parts) and all(len(part) for part in parts))
        self.parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.turns = None if weights is None else Turns(whole_numbers(weights))
        self.epoch_examples = len(self) if self.turns is None else _epoch_length(self.parts, self.turns.weights, epoch)
        digest = hashlib.sha256("/".join(part.fingerprint for part in parts).encode())
        if self.turns is not None:
            digest.update(f"{self.turns.weights} {self.epoch_examples}".encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        part = bisect_right(self._starts.tolist(), index) - 1
        return self.parts[part][index - int(self._starts[part])]

    def __iter__(self) -> Iterator[Example]:
        return (example for part in self.parts for example in part)

    def drawn(self, start: int, stop: int, seed: int) -> np.ndarray:
        """[stop - start] int64: the examples of the run's draws start .. stop - 1. Only with weights."""
        assert self.turns is not None
        sources, ranks = self.turns.draws(start, stop)
        chosen = np.empty(len(sources), np.int64)
        for source in np.unique(sources):
            mine = sources == source
            size = len(self.parts[source])
            passes, within = np.divmod(ranks[mine], size)
            picked = np.empty(len(within), np.int64)
            for number in np.unique(passes):
                now = passes == number
                picked[now] = _permutation(size, seed, int(source), int(number))[within[now]]
            chosen[mine] = self._starts[source] + picked
        return chosen

    def passes(self) -> list[float]:
        """How many times an epoch goes through each part; 1 without weights."""
        if self.turns is None:
            return [1.0] * len(self.parts)
        shares = [weight / self.turns.total for weight in self.turns.weights]
        return [share * self.epoch_examples / len(part) for share, part in zip(shares, self.parts)]

    @property
    def conversation_hashes(self) -> np.ndarray:
        """[examples] uint64, the same for examples of one conversation."""
        return np.concatenate([part.conversation_hashes for part in self.parts])

    @property
    def lengths(self) -> np.ndarray:
        """[examples] int64, tokens of each example."""
        return np.concatenate([part.lengths for part in self.parts])

    @property
    def tokens(self) -> int:
        """Tokens of all examples, each as rendered alone."""
        return sum(part.tokens for part in self.parts)

    @property
    def trained_tokens(self) -> int:
        """Tokens with a loss weight above 0."""
        return sum(part.trained_tokens for part in self.parts)


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int, source: int, number: int) -> np.ndarray:
    """The order in which a source gives its examples, the `number`-th time through."""
    return numpy_rng(seed, "order", source, number).permutation(size)


def whole_numbers(weights: Sequence[float]) -> list[int]:
    """The same proportions as whole numbers without a common factor: [0.7, 0.3] -> [7, 3], as they are written."""
    fractions = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * common) for fraction in fractions]
    divisor = math.gcd(*whole)
    return [number // divisor for number in whole]


def _epoch_length(parts: Sequence[Examples], weights: Sequence[int], epoch: Epoch) -> int:
    """Draws until the first part was given whole, or all of them were."""
    if isinstance(epoch, int):
        return epoch
    total = sum(weights)
    if epoch == "first_exhausted":
        return max(1, min(len(part) * total // weight for part, weight in zip(parts, weights)))
    return max(-(-len(part) * total // weight) for part, weight in zip(parts, weights))
