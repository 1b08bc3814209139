"""How a frozen weight is kept: anything that can produce its `[out, in]` matrix.

This one method, `dense`, is where adapters and quantisation meet: N adapters and M kinds of storage are N + M files.
Experts [E, out, in] are one weight with E * out rows, and an expert is `rows` of it: a kind needs no line for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorikeet.base.options import Options


class FrozenWeight(nn.Module):
    """A weight [out, in] that does not train. Stored rows lie on dim 0 of its tensors."""

    out_features: int
    in_features: int

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in `dtype`. May alias storage: callers never write to it."""
        raise NotImplementedError

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows start..stop of `dense` [stop - start, in]. A kind that computes its dense form computes only these
        rows here: of many experts, few are asked for."""
        return self.dense(dtype)[start:stop]

    def write(self, start: int, weight: Tensor) -> None:
        """Keep a dense `weight` [n, in] as rows start..start+n. Loading fills a group's storage member by member, so
        that one dense tensor is in memory at a time."""
        raise NotImplementedError

    def take(self, start: int, stop: int, parts: dict[str, Tensor]) -> None:
        """Keep rows start..stop as a checkpoint stored them: `parts` are its tensors by the names of
        `Quant.stored_parts`, taken over without rounding. Raises CheckpointError where they do not fit."""
        raise NotImplementedError

    def expect(self, start: int, stop: int) -> None:
        """Make room for what `take` will keep of rows start..stop in tensors of their own, as far as the options say
        it. Planning asks, which has no `parts`."""

    def give(self, start: int, stop: int) -> dict[str, Tensor] | None:
        """The inverse of `take`, for one member's rows; None where the stored form has no place for these sizes."""
        return None

    def linear(self, x: Tensor) -> Tensor:
        """x [T, in] -> x W^T [T, out]. A kind may bring a fused kernel."""
        return x @ self.dense(x.dtype).T

    def has_few_rows(self) -> bool:
        """Whether `few_rows` is there."""
        return False

    def few_rows(self, x: Tensor, z: Tensor | None, low: Tensor | None) -> Tensor:
        """x [T, in] W^T + z [T, S] low^T -> [T, out] for few rows (of new tokens), from what is stored: the bits that
        kernels/few_rows.py gives with the dense form, which takes longer to make than to multiply. The caller has asked
        `has_few_rows`, and `few_rows.serves_sizes` about x."""
        raise NotImplementedError

    def backward(self, dy: Tensor) -> Tensor:
        """dy [T, out] -> dy W [T, in], the gradient of `linear` with respect to x."""
        return dy @ self.dense(dy.dtype)


class Quant(Options):
    """Base of the quantisation kinds; fields are `quant`'s options.

    A kind that checkpoints are stored in names the tensors it finds there behind a linear's name (`stored_parts`), and
    which checkpoints are its own (`stored_as`); `FrozenWeight.take` then keeps them as they are."""

    stored_parts: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def stored_as(cls, settings: dict[str, Any], source: object) -> Quant | None:
        """This kind with the options that a config.json's quantization_config (`settings`) says, or None where that is
        of another kind. Raises CheckpointError about `source` for one of this kind that cannot be read."""
        return None

    def stored_settings(self, dtype: torch.dtype) -> dict[str, Any] | None:
        """The inverse of `stored_as`: the quantization_config of a folder whose linears are what `FrozenWeight.give`
        gives, computed with in `dtype`. None for a kind that no folder holds."""
        return None

    @property
    def remark(self) -> str:
        """What a line about the model says of it behind the dtype; nothing where linears are dense."""
        return f", linears in {self.model_dump()['kind']}"

    def keeps(self, names: Sequence[str]) -> Quant:
        """How linears of these names, which share a storage, are kept: this way, or another."""
        return self

    def check(self, names: Sequence[str]) -> None:
        """Raise RecipeError for an option that means nothing in a network with linears of these names."""

    def empty(self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device) -> FrozenWeight:
        """Storage for a weight [out, in], without contents: loading writes rows into it, planning leaves it empty."""
        raise NotImplementedError

    def freeze(self, weight: Tensor) -> FrozenWeight:
        """Keep a dense `weight` [out, in] this way."""
        kept = self.empty(weight.shape[0], weight.shape[1], weight.dtype, weight.device)
        kept.write(0, weight)
        return kept
