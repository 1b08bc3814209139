"""The frozen linears of a network, in groups that read the same input.

q, k and v (or gate and up) are one matmul: a `LinearGroup` owns their weights in one storage, and its members stay
named slices of it, each with its own bias and its own place for an adapter. A lone linear is a group of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lorikeet.models.slots import Slot, parameter_slot
from lorikeet.ops.lora_linear import Prologue, lora_linear
from lorikeet.quant._contract import FrozenWeight


class FrozenLinear(nn.Module):
    """One named linear: rows `rows` of its group's weight. `name` is the checkpoint's, without `.weight`."""

    def __init__(self, name: str, rows: slice, weight: FrozenWeight, bias: Tensor | None):
        super().__init__()
        self.name, self.rows = name, rows
        self._weight = [weight]  # in a list: the group owns the module, the member only looks
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.adapter: nn.Module | None = None  # what an adapter keeps for this linear

    @property
    def out_features(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def in_features(self) -> int:
        return self._weight[0].in_features

    @property
    def device(self) -> torch.device:
        return next(self._weight[0].parameters()).device

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of the weight as it is kept; integers where it is quantised."""
        return next(self._weight[0].parameters()).dtype

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The frozen weight [out, in]; may alias storage."""
        return self._weight[0].rows(self.rows.start, self.rows.stop, dtype)

    def keep_in(self, weight: FrozenWeight) -> None:
        """The group's weight has been exchanged for this one."""
        self._weight = [weight]

    def write(self, weight: Tensor) -> None:
        """Keep a dense weight [out, in] in the group's storage."""
        self._weight[0].write(self.rows.start, weight)

    def take(self, parts: dict[str, Tensor]) -> None:
        """Keep the weight as a checkpoint stored it: see `FrozenWeight.take`."""
        self._weight[0].take(self.rows.start, self.rows.stop, parts)

    def give(self) -> dict[str, Tensor] | None:
        """The weight as a checkpoint stores it: see `FrozenWeight.give`."""
        return self._weight[0].give(self.rows.start, self.rows.stop)


class LinearGroup(nn.Module):
    """Linears over one input, computed together. `attached` is what an adapter put there: it computes instead."""

    attached: Callable[[Tensor, Prologue | None], Tensor] | None  # set by an adapter
    answering: Callable[[Tensor, Prologue | None], Tensor] | None  # the same without gradients, while replies are made
    routes: bool = False  # whether it decides which experts compute: then all-linear leaves it alone

    def __init__(
        self, names: Sequence[str], sizes: Sequence[int], weight: FrozenWeight, biases: Sequence[Tensor | None]
    ):
        super().__init__()
        assert sum(sizes) == weight.out_features and len(names) == len(sizes) == len(biases)
        self.weight = weight
        self.sizes = tuple(sizes)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.members = nn.ModuleList(
            FrozenLinear(name, slice(start, start + size), weight, bias)
            for name, start, size, bias in zip(names, starts, sizes, biases)
        )
        self.attached = self.answering = None

    @property
    def linears(self) -> list[FrozenLinear]:
        return [member for member in self.members if isinstance(member, FrozenLinear)]

    def bias(self) -> Tensor | None:
        """The members' biases side by side [out], or None where no member has one."""
        biases = [member.bias for member in self.linears]
        if all(bias is None for bias in biases):
            return None
        parts = [
            torch.zeros(member.out_features, device=member.device) if bias is None else bias
            for member, bias in zip(self.linears, biases)
        ]
        return torch.cat([part.float() if part.dtype != torch.float64 else part for part in parts])

    def slots(self) -> Iterator[Slot]:
        """Each member's weight and bias; see models/build.py."""
        takes = type(self.weight).take is not FrozenWeight.take
        for linear in self.linears:
            size = (linear.out_features, linear.in_features)
            yield Slot(f"{linear.name}.weight", size, linear.write, linear.dense, linear.take if takes else None)
            if linear.bias is not None:
                yield parameter_slot(f"{linear.name}.bias", linear.bias)

    def forward(self, x: Tensor, prologue: Prologue | None = None) -> Tensor:
        """x, or what the prologue makes of it, [T, in] -> [T, sum of the members' out]."""
        if self.answering is not None:
            return self.answering(x, prologue)
        if self.attached is not None:
            return self.attached(x, prologue)
        return lora_linear(x, self.weight, self.bias(), prologue=prologue)
