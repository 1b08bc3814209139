"""Which rows of which module each tensor of a checkpoint is, in networks of transformers'.

Modules may hold tensors otherwise than checkpoints do: experts stacked, names changed. transformers can undo that when
it saves. It is asked to do so with tensors whose numbers are those of their rows, and what comes out tells, for each
name in a checkpoint, the module's tensor and rows it is made of. So no name is known here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints._contract import Checkpoint

Sizes = Mapping[str, tuple[int, ...]]  # of the modules' tensors, by the names of the state dict


@dataclass(frozen=True)
class Piece:
    """The checkpoint's tensor `name` is rows start..start+rows of the module's tensor `key`, which counts its rows
    through all its experts [E, out, in]; None for all of it."""

    name: str
    key: str
    shape: tuple[int, ...]
    rows: slice | None = None

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]


def pieces(sizes: Sizes, undo: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> list[Piece]:
    """Every tensor of a checkpoint, in the order of the modules. `undo` is what transformers does before it saves.

    Raises ModelError where a tensor in a checkpoint is made of several modules' tensors."""
    marked, starts, keys = {}, [], []
    end = 0
    for key, shape in sizes.items():
        starts.append(end)
        keys.append(key)
        marked[key] = _numbered(shape, end)
        end += max(1, marked[key].numel())
    found = []
    for name, numbers in undo(dict(marked)).items():
        flat = numbers.flatten()
        at = bisect_right(starts, int(flat[0])) - 1
        key, first = keys[at], int(flat[0]) - starts[at]
        if not torch.equal(flat, torch.arange(len(flat), dtype=flat.dtype) + int(flat[0])) or numbers.dim() > 4:
            raise ModelError(
                f"transformers keeps '{name}' in pieces that are not put together again here",
                given=f"'{key}' and others",
                try_="model.source=native, where the family is known",
            )
        whole = len(flat) == marked[key].numel()
        shape = sizes[key] if whole and numbers.shape == marked[key].shape else _of_part(numbers, sizes[key])
        found.append((at, first, Piece(name, key, shape, None if whole else slice(first, first + len(flat)))))
    return [piece for _, _, piece in sorted(found, key=lambda one: one[:2])]


def _numbered(shape: tuple[int, ...], start: int) -> Tensor:
    """Of each row its number. Matrices of experts count on from expert to expert."""
    if len(shape) < 2:
        count = shape[0] if shape else 1
        numbers = torch.arange(start, start + count)
        return numbers if shape else numbers[0]
    rows = shape[:-1] if len(shape) == 3 else shape[:1]
    count = int(torch.tensor(rows).prod())
    return torch.arange(start, start + count).view(*rows, *([1] * (len(shape) - len(rows))))


def _of_part(numbers: Tensor, whole: tuple[int, ...]) -> tuple[int, ...]:
    rows = numbers.shape[:-1] if len(whole) == 3 else numbers.shape[:1]
    return (*rows, *whole[len(whole) - (numbers.dim() - len(rows)) :])


class Reading:
    """Finds a tensor in a checkpoint, which may lack the network's prefix or hold it as the modules do."""

    def __init__(self, found: list[Piece], prefix: str):
        self._pieces, self._prefix = {piece.name: piece for piece in found}, prefix

    def names(self, name: str) -> Iterator[str]:
        """What the tensor may be called, likeliest first."""
        yield name
        if self._prefix:
            start = f"{self._prefix}."
            yield name.removeprefix(start) if name.startswith(start) else start + name

    def read(self, checkpoint: Checkpoint, known: frozenset[str], name: str) -> Tensor:
        """The tensor. Raises CheckpointError where it is not there."""
        for one in self.names(name):
            if one in known:
                return checkpoint.read(one)
        piece = self._pieces.get(name)
        if piece is not None:
            for one in self.names(piece.key):
                if one in known:
                    return self._part(checkpoint, one, piece)
        return checkpoint.read(name)

    def _part(self, checkpoint: Checkpoint, name: str, piece: Piece) -> Tensor:
        if piece.rows is None:
            return checkpoint.read(name)
        height = checkpoint.shape(name)[-2]
        expert, start = divmod(piece.rows.start, height)
        size = piece.rows.stop - piece.rows.start
        if size > height:
            whole = checkpoint.read(name)
            return whole.flatten(0, 1)[piece.rows].view(piece.shape)
        return checkpoint.read(name, expert)[start : start + size]
