"""The empty parts of a network, each knowing its checkpoint names; see slots.py for how they are filled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lorikeet.models.linear import LinearGroup
from lorikeet.models.mapped_rows import MappedRows
from lorikeet.models.slots import Slot, parameter_slot
from lorikeet.ops.norm import Normed, rms_norm
from lorikeet.ops.weight_gradient import table_rows
from lorikeet.quant._contract import FrozenWeight, Quant
from lorikeet.quant.none import NoQuant


class Norm(nn.Module):
    """RMSNorm with a weight [D]; `offset` is what the checkpoint leaves out of it (Gemma: 1)."""

    def __init__(self, name: str, weight: nn.Parameter, eps: float, offset: float):
        super().__init__()
        self.name, self.weight, self.eps, self.offset = name, weight, eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return rms_norm(x, self.weight.to(x.dtype), self.eps, self.offset)

    def before(self, linears: LinearGroup, x: Tensor) -> Tensor:
        """linears(norm(x)); the normed x is not kept for the backward pass, unless this norm trains alone."""
        if self.weight.requires_grad and not getattr(linears.attached, "trains_norms", False):
            return linears(self(x))
        return linears(x, Normed(self.weight.to(x.dtype), self.eps, self.offset))

    def slots(self) -> Iterator[Slot]:
        """See `Part`."""
        yield parameter_slot(f"{self.name}.weight", self.weight)


class Embedding(nn.Module):
    """A table [V, D]: the embedding, or a head of its own, which its owner applies. Rows are multiplied by `scale`."""

    scale: float | None = None
    dtype: torch.dtype | None = None  # of the rows it gives, where the table is kept in another
    new_rows: nn.Module | None  # those of new tokens: see new_rows.py

    def __init__(self, name: str, weight: nn.Parameter):
        super().__init__()
        self.name, self.weight, self.new_rows = name, weight, None

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [T] -> their rows [T, D]."""
        rows = table_rows(tokens, self.weight, self.dtype or self.weight.dtype)
        if self.new_rows is not None:
            rows = cast(Tensor, self.new_rows.over(rows, tokens))  # type: ignore[operator]
        return self.scaled(rows)

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows of the table as they enter the network; the scale is rounded as the model was trained."""
        return rows if self.scale is None else rows * torch.tensor(self.scale, dtype=rows.dtype)

    def slots(self) -> Iterator[Slot]:
        """See `Part`."""
        yield parameter_slot(f"{self.name}.weight", self.weight)


class MappedEmbedding(Embedding):
    """The embedding's rows stay in the checkpoint's file. It has no `weight`, so it is no head."""

    def __init__(self, name: str, rows: MappedRows):
        nn.Module.__init__(self)
        self.name, self.rows = name, rows

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [T] -> their rows [T, D]."""
        return self.scaled(self.rows.gather(tokens))

    def slots(self) -> Iterator[Slot]:
        """See `Part`."""
        yield Slot(f"{self.name}.weight", self.rows.shape, None, self.rows.whole)


@dataclass(frozen=True)
class Build:
    """How parts are made: how frozen weights are kept, in which dtype, where. `mapped`: a tensor that stays in the
    checkpoint's file."""

    quant: Quant
    dtype: torch.dtype
    device: torch.device
    mapped: MappedRows | None = None

    def linears(
        self, names: Sequence[str], sizes: Sequence[int], width: int, *, bias: bool = False, routes: bool = False
    ) -> LinearGroup:
        """Linears over one input [T, width], named as in the checkpoint, with outputs of `sizes`. Those that route
        tokens to experts stay dense."""
        quant = NoQuant() if routes else self.quant.keeps(names)
        storage = quant.empty(sum(sizes), width, self.dtype, self.device)
        biases = [torch.empty(size, dtype=self.dtype, device=self.device) if bias else None for size in sizes]
        group = LinearGroup(names, sizes, storage, biases)
        group.routes = routes
        return group

    def experts(self, names: Sequence[str], out_features: int, width: int) -> FrozenWeight:
        """One storage for the linears of many experts."""
        return self.quant.keeps(names).empty(out_features, width, self.dtype, self.device)

    def check(self, groups: Iterable[LinearGroup]) -> None:
        """Raise RecipeError for an option of the quantisation that means none of the network's linears."""
        self.quant.check([linear.name for group in groups if not group.routes for linear in group.linears])

    def parameter(self, *sizes: int) -> nn.Parameter:
        """A frozen tensor without contents."""
        return nn.Parameter(torch.empty(sizes, dtype=self.dtype, device=self.device), requires_grad=False)

    def norm(self, name: str, width: int, eps: float, offset: float = 0.0) -> Norm:
        return Norm(name, self.parameter(width), eps, offset)

    def embedding(self, name: str, vocabulary: int, width: int) -> Embedding:
        if self.mapped is not None and self.mapped.name == f"{name}.weight":
            return MappedEmbedding(name, self.mapped)
        return Embedding(name, self.parameter(vocabulary, width))
