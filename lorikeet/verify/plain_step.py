"""A training step computed as plainly as can be, and how much of a difference rounding alone makes.

The plain step reads one conversation at a time, without padding, looks at attention's definition, makes whole logits,
keeps every layer and computes with plain PyTorch on one thread: nothing that a run does to be fast. What it shares with
a run is the network itself, its weights and the adapter.

How far two correct computations may be apart depends on the dtype and on the model. `Halved` measures it: the same
step, with the sum inside every matrix product taken in two halves that are rounded before they are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorikeet.base.nouns import Batch, Example
from lorikeet.models.causal_lm import CausalLM, Head
from lorikeet.ops.attention import PackedView, Prefix, reference_attention
from lorikeet.train.optim import Stepper

MOST_KEPT = 1 << 16  # numbers of each gradient that are compared, spread over it evenly

HeadSum = Callable[[Head, Tensor, Batch], Tensor]  # hidden states [N, D] of a row to its weighted sum of losses


@dataclass(frozen=True)
class Computed:
    """What a step came to. `gradients` by name: up to MOST_KEPT numbers of each, float32 on the CPU."""

    loss: float
    gradients: Mapping[str, Tensor]


class Recorder(Stepper):
    """A stepper that keeps the gradients where others move the parameters."""

    def step(self, rate: float) -> float:
        """Nothing moves."""
        return 0.0

    def gradients(self) -> dict[str, Tensor]:
        """Of the last step; zeros where a parameter has none."""
        return {name: kept(parameter) for name, parameter in self.parameters.items()}


def kept(parameter: nn.Parameter) -> Tensor:
    """The part of a parameter's gradient that is compared."""
    apart = -(-parameter.numel() // MOST_KEPT)
    if parameter.grad is None:
        return torch.zeros(-(-parameter.numel() // apart))
    return parameter.grad.detach().flatten()[::apart].to("cpu", torch.float32, copy=True)


class DefinedView(PackedView):
    """A row whose attention is computed by the definition."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, prefix: Prefix | None = None, **options: Any
    ) -> Tensor:
        """See `View.attend`."""
        if prefix is None:
            until, positions = self.visible_until.to(q.device), self.positions.to(q.device)
            return reference_attention(q, k, v, until, positions, **options)
        size = len(prefix[0])
        q, k, v = F.pad(q, (0, 0, 0, 0, size, 0)), torch.cat([prefix[0], k]), torch.cat([prefix[1], v])
        row = self.behind(size)
        return DefinedView(row.visible_until, row.positions).attend(layer, q, k, v, **options)[size:]


def whole_logits(head: Head, states: Tensor, row: Batch) -> Tensor:
    """The head's sum of losses by its definition. Rows of new tokens stand in the head's weight as they train."""
    weight: Tensor = head.weight
    if head.new_rows is not None:
        first, rows = head.new_rows.first, head.new_rows.weight
        assert isinstance(first, int) and isinstance(rows, Tensor)
        weight = torch.cat([weight[:first], rows.to(weight.dtype), weight[first + len(rows) :]])
    logits = states @ weight.to(states.dtype).T
    # in float32, torch's sum of 49,152 powers is wrong by 1e-5, always to one side
    logits = logits.to(torch.float32 if logits.dtype.itemsize < 4 else torch.float64)
    logits = head.scale * (logits if head.bias is None else logits + head.bias)
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    losses = F.cross_entropy(logits, row.targets, reduction="none")
    return (losses * row.weights.to(losses.dtype)).sum()


def by_hand(
    model: CausalLM,
    recorder: Recorder,
    rows: Sequence[Batch],
    *,
    view: type[PackedView] = PackedView,
    loss: HeadSum = whole_logits,
) -> Computed:
    """A step over rows as they are, without padding."""
    total, found = sum(row.total_weight for row in rows), 0.0
    recorder.clear()
    for packed in rows:
        row = packed.to(model.device)
        hidden = model.hidden(row.tokens, row.positions, view(packed.visible_until, packed.positions))
        part = loss(model.head, hidden.index_select(0, row.predict_at), row) / total
        recorder.backward(part)
        found += part.item()
    recorder.step(0.0)
    return Computed(found, recorder.gradients())


def one_by_one(examples: Sequence[Example]) -> list[Batch]:
    """Each conversation as a row of its own, laid out here and not by the packer."""
    rows = []
    for example in examples:
        tokens, weights = torch.from_numpy(example.tokens.astype("int64")), torch.from_numpy(example.weights.copy())
        size, trained = len(tokens), torch.nonzero(weights > 0)[:, 0]
        rows.append(
            Batch(
                tokens=tokens,
                positions=torch.arange(size),
                visible_until=torch.full((size,), size, dtype=torch.int32),
                predict_at=trained - 1,
                targets=tokens[trained],
                weights=weights[trained],
                total_weight=float(weights.double().sum()),
                source_tokens=size,
            )
        )
    return rows


def twin(example: Example) -> Example:
    """A conversation that begins as this one does and then says its last third backwards: what a row can share."""
    tokens, third = example.tokens.copy(), len(example.tokens) // 3
    tokens[len(tokens) - third :] = tokens[len(tokens) - third :][::-1]
    return replace(example, tokens=tokens)


class Halved(TorchDispatchMode):
    """Inside it every matrix product is the sum of two, over the first and the second half of what it sums over."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, kwargs = torch.ops.aten, kwargs or {}
        if func in (aten.mm.default, aten.bmm.default) and args[0].shape[-1] > 1:
            left, right = args
            half = left.shape[-1] // 2
            first = func(left[..., :half], right[..., :half, :])
            return first + func(left[..., half:], right[..., half:, :])
        if func is aten.addmm.default and args[1].shape[-1] > 1 and not kwargs:
            bias, left, right = args
            half = left.shape[-1] // 2
            return func(bias, left[:, :half], right[:half]) + aten.mm.default(left[:, half:], right[half:])
        return func(*args, **kwargs)
