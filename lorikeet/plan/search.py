"""What makes a recipe fit a given memory: the mildest change of each kind that does, cheapest in speed first.

A ladder is one kind of change, mild to severe, and memory falls along it. So the last rung says whether the ladder
helps at all, and the mildest rung that fits is found by halving: a rung costs one simulated step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROW_TOKENS = (1536, 1024, 768, 512, 256)
SMALL_ROWS = 512  # below, matmuls are so thin that computing layers twice is cheaper
LEAST_LENGTH = 256

Changes = Mapping[str, Any]  # the recipe's key -> its value: {"train.row_tokens": 1024}


@dataclass(frozen=True)
class Trial:
    """A recipe with changes, simulated."""

    changes: Changes
    bytes: int  # what has to fit
    flops_per_token: float
    largest: str  # what most of it is: a kind of tensors, or what the process holds without any

    def fits(self, limit: int) -> bool:
        return self.bytes <= limit


@dataclass(frozen=True)
class Ladder:
    """Changes of one kind, mild to severe. `exact`: the model that comes out is the same, but for rounding."""

    name: str
    rungs: Sequence[Changes]
    exact: bool
    cost: str  # what it costs, in words


@dataclass(frozen=True)
class Tried:
    """What became of a ladder."""

    ladder: Ladder
    trial: Trial  # the mildest rung that fits, or the severest
    fits: bool


@dataclass(frozen=True)
class Facts:
    """What the ladders depend on, of the recipe as it is."""

    row_tokens: int
    longest: int  # tokens of the longest conversation: a row is never smaller
    layers: int
    twice: int  # layers that are computed twice already
    dtype: str
    optimizer: Sequence[
        Changes
    ] = ()  # changes with which gradients and the optimizer's state take less, mild to severe
    adapter: Sequence[Changes] = ()  # and those that make the adapter smaller


def search(facts: Facts, limit: int, simulate: Callable[[Changes], Trial | None]) -> list[Tried]:
    """The ladders that were tried, those that fit first; `simulate` gives None for what the network cannot do.

    Ladders that change the model that comes out are only tried where none of the others fits."""
    found: list[Tried] = []
    for ladder in ladders(facts):
        if not ladder.exact and any(tried.fits for tried in found):
            break
        if (tried := _climb(ladder, limit, simulate)) is not None:
            found.append(tried)
    exact = sorted((one for one in found if one.fits), key=lambda one: one.trial.flops_per_token)
    return exact + [one for one in found if not one.fits]


def ladders(facts: Facts) -> list[Ladder]:
    """What may be changed, cheapest first."""
    # a conversation that is longer than a row has one to itself, whatever rows may hold
    rows = [n for n in ROW_TOKENS if n < facts.row_tokens] if facts.row_tokens > facts.longest else []
    useful = [n for n in rows if n > facts.longest] + [n for n in rows if n <= facts.longest][:1]
    smaller = [n for n in useful if n >= SMALL_ROWS]
    found: list[Ladder] = []
    if smaller:
        found.append(Ladder("smaller rows", [{_ROWS: n} for n in smaller], True, "a few per cent of the speed"))
    all_twice: Changes = {} if facts.twice >= facts.layers else {_TWICE: True}
    severest: dict[str, Any] = {**all_twice, **({_ROWS: useful[-1]} if useful else {})}
    if all_twice:
        some = [n for n in (facts.layers // 4, facts.layers // 2, 3 * facts.layers // 4) if n > facts.twice]
        rungs = [*({_TWICE: n} for n in some), all_twice, *({**all_twice, _ROWS: n} for n in useful)]
        found.append(Ladder("layers computed twice", rungs, True, "up to a third more time"))
    elif useful and not smaller:
        found.append(Ladder("smaller rows", [{_ROWS: n} for n in useful], True, "small matmuls are slow"))
    if facts.dtype in ("float32", "float64"):
        half = {"model.dtype": "bfloat16"}
        rungs = [half, {**half, **severest}] if severest else [half]
        cost = "rounding; slow on a CPU without bfloat16 instructions"
        found.append(Ladder("bfloat16", rungs, False, cost))
        severest |= half
    if facts.optimizer:
        rungs = [*facts.optimizer, *([{**severest, **facts.optimizer[-1]}] if severest else [])]
        found.append(Ladder("a leaner optimizer", rungs, False, "gradients are not clipped, averages rounded"))
        severest |= facts.optimizer[-1]
    lengths = [n for n in (facts.longest // 2, facts.longest // 4, facts.longest // 8) if n >= LEAST_LENGTH]
    if lengths:
        rungs = [{**severest, _ROWS: min(facts.row_tokens, max(256, n)), "data.max_length": n} for n in lengths]
        found.append(Ladder("shorter conversations", rungs, False, "longer conversations lose the start of the prompt"))
        severest = dict(rungs[-1])
    if facts.adapter:
        rungs = [{**severest, **changes} for changes in facts.adapter]
        found.append(Ladder("a smaller adapter", rungs, False, "it can learn less"))
    return found


def _climb(ladder: Ladder, limit: int, simulate: Callable[[Changes], Trial | None]) -> Tried | None:
    low, high = 0, len(ladder.rungs) - 1
    best = simulate(ladder.rungs[high])
    if best is None:
        return None
    if not best.fits(limit):
        return Tried(ladder, best, False)
    while low < high:
        middle = (low + high) // 2
        trial = simulate(ladder.rungs[middle])
        if trial is not None and trial.fits(limit):
            best, high = trial, middle
        else:
            low = middle + 1
    return Tried(ladder, best, True)


_ROWS, _TWICE = "train.row_tokens", "train.gradient_checkpointing"
