"""The slots of a network: one for each checkpoint tensor, which loading fills and saving reads.

A part is any module with a method `slots`; a network's slots are those of its parts in the order they were made. So a
new part (experts, another feed-forward) brings its own slots, and loading, merging and saving need no line for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """One checkpoint tensor's place. `write` takes it dense, on any device in any dtype; `read` gives it back dense
    in the dtype asked for, without adapters. `write` is None where the tensor stays in the checkpoint's file."""

    name: str
    shape: tuple[int, ...]
    write: Callable[[Tensor], None] | None
    read: Callable[[torch.dtype], Tensor]
    take: Callable[[dict[str, Tensor]], None] | None = None  # as a checkpoint stores it quantised: models/stored.py
    transposed: bool = False  # a linear's weight that checkpoints hold as [in, out]
    holds: Tensor | None = None  # the parameter or buffer that is this tensor, where one is


class Part(Protocol):
    """A module that holds checkpoint tensors of its own."""

    def slots(self) -> Iterator[Slot]: ...


def slots(model: nn.Module) -> Iterator[Slot]:
    """The slots of all parts inside `model`."""
    for module in model.modules():
        if hasattr(module, "slots") and module is not model:
            yield from cast(Part, module).slots()


def parameter_slot(name: str, parameter: Tensor) -> Slot:
    """The slot of a tensor that is kept as it is."""

    def write(tensor: Tensor) -> None:
        with torch.no_grad():
            parameter.copy_(tensor)

    return Slot(name, tuple(parameter.shape), write, lambda dtype: parameter, holds=parameter)
