"""Sequences laid out so that a common prefix stands once: the walk through their prefix tree, depth first.

In sorted order sequences with a common prefix are neighbours, and each adds only what its predecessor did not have.
A token stays visible to what follows until the walk leaves its subtree. Training packs its rows this way, and the
engine reads prompts this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_SHARED = 4  # a shorter common prefix is not worth a branch: attention would only be cut finer


@dataclass(frozen=True)
class PrefixTree:
    """`paths[i]` [L] are the row's indices of sequence i; `parents` [T] the index before each token, -1 at a root."""

    tokens: np.ndarray  # [T] int64
    positions: np.ndarray  # [T] int64
    visible_until: np.ndarray  # [T] int32
    parents: np.ndarray  # [T] int64
    paths: list[np.ndarray]


def sorted_order(sequences: Sequence[np.ndarray]) -> list[int]:
    """Indices of the sequences in lexicographic order of their ids."""
    keys = [sequence.astype(">i4").tobytes() for sequence in sequences]
    return sorted(range(len(sequences)), key=keys.__getitem__)


def shared_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the common prefix, or 0 where it is too short to be worth a branch."""
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    common = int(different[0]) if len(different) else size
    return common if common >= MIN_SHARED else 0


def lay_out(sequences: Sequence[np.ndarray], *, share: bool = True) -> PrefixTree:
    """Lay out id sequences in the order given; neighbours share what they have in common (if `share`)."""
    size = sum(len(sequence) for sequence in sequences)
    until = np.zeros(size, np.int32)
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    parents: list[np.ndarray] = []
    paths: list[np.ndarray] = []
    path, previous, used = np.zeros(0, np.int64), np.zeros(0, np.int32), 0
    for sequence in sequences:
        shared = shared_prefix(previous, sequence) if share else 0
        until[path[shared:]] = used  # the walk leaves what the predecessor had beyond the branch
        added = len(sequence) - shared
        path = np.concatenate([path[:shared], np.arange(used, used + added)])
        tokens.append(sequence[shared:])
        positions.append(np.arange(shared, shared + added))
        parents.append(np.concatenate([[-1], path[:-1]])[shared:])
        paths.append(path)
        previous, used = sequence, used + added
    until[path] = used
    flat = [np.concatenate(parts).astype(np.int64) for parts in (tokens, positions, parents)]
    return PrefixTree(flat[0], flat[1], until[:used], flat[2], paths)
